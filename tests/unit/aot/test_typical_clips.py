"""What is reckoned with in place of a corpus's own clips."""

import dataclasses

import numpy as np
import pytest

from configs import base
from viavsp_jax.aot import workload
from viavsp_jax.aot.typical_clips import KEPT, TypicalPrompt, draw_clips
from viavsp_jax.data.compression import CLUSTERS, Compression
from viavsp_jax.data.settings import ClipSeconds
from viavsp_jax.run_settings import read_settings


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


def test_each_compression_has_its_turn():
    ways = (CLUSTERS, Compression.of("pool:4"), Compression.of("clusters+max:1"))
    plain, several = (draw_clips(300, ClipSeconds(3.04, 3.04), x) for x in ((CLUSTERS,), ways))
    for number, (before, clip) in enumerate(zip(plain, several, strict=True)):
        counts = before.pop("cluster_counts"), clip.pop("cluster_counts")
        np.testing.assert_array_equal(counts[1], ways[number % 3].run_lengths(counts[0]))
        assert before.pop("features").shape == clip.pop("features").shape and before == clip
    assert [len(one["cluster_counts"]) for one in draw_clips(6, ClipSeconds(3.04, 3.04), ways)][1:6:3] == [19, 19]


def test_rows_are_reckoned_with_by_the_compressions():
    """A row of pooled clips holds as many positions of speech as they have, and of a list the mean of all."""
    config = base.get_config()
    config.data.row = {"positions": 1024, "frames": 4096, "labels": 2048, "clips": 64, "window": 192}
    data = read_settings(config).data

    def speech(*texts):
        """Positions of a clip without its label."""
        found = workload.pack(dataclasses.replace(data, compression=tuple(map(Compression.of, texts))))
        clips = [len(positions) - (labels - 1) for positions, labels in found if labels]
        return np.mean(clips)

    assert speech("pool:4") == 19 and speech("pool:2") == 38
    assert speech("pool:4", "pool:2") == pytest.approx(28.5, rel=0.02)
    assert speech("clusters") == pytest.approx(76 * KEPT[0], rel=0.02)
