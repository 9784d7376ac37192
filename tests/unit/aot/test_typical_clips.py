"""What is reckoned with in place of a corpus's own clips."""

import numpy as np
import pytest

from viavsp_jax.aot.typical_clips import KEPT, TypicalPrompt, draw_clips
from viavsp_jax.data.settings import ClipSeconds


def test_clips_of_one_length_are_vasr_s():
    clips = draw_clips(500, ClipSeconds(3.04, 3.04))
    assert {len(clip["features"]) for clip in clips} == {76}
    assert np.mean([len(clip["cluster_counts"]) for clip in clips]) == pytest.approx(76 * KEPT[0], rel=0.02)
    labels = [len(TypicalPrompt().label(clip["transcript"])) for clip in clips]
    assert min(labels) == 12 and max(labels) == 28


def test_clips_of_other_lengths():
    """Segments and words grow with the seconds."""
    clips = draw_clips(4000, ClipSeconds(5.3, 15))
    frames = np.array([len(clip["features"]) for clip in clips])
    assert frames.mean() == pytest.approx(5.3 * 25, rel=0.03) and 0.9 * 375 < frames.max() <= 375 and frames.min() >= 1
    for clip in clips:
        assert clip["cluster_counts"].sum() == len(clip["features"]) and clip["cluster_counts"].min() >= 1
    labels = np.array([len(TypicalPrompt().label(clip["transcript"])) for clip in clips])
    long, short = frames > 250, frames < 100
    assert (labels[long] / frames[long]).mean() == pytest.approx((labels[short] / frames[short]).mean(), rel=0.1)
    assert np.std(labels[long] / frames[long]) < np.std(labels[short] / frames[short])
