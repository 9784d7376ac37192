"""Random clips as long as a corpus's, to reckon with where the real ones are not at hand."""

from collections.abc import Sequence

import numpy as np

from viavsp_jax.data.compression import CLUSTERS, Compression
from viavsp_jax.data.features import FRAME_RATE
from viavsp_jax.data.packing import Arrays
from viavsp_jax.data.settings import ClipSeconds

FRAMES = 76  # of VASR's clips, of which the numbers below are; in longer ones, they spread less around their means
# Share of the frames left when every run of one cluster becomes one segment: mean and standard deviation over clips, of
# the parent project's English test set.
KEPT = (0.595, 0.065)
INSTRUCTION_TOKENS = 15
LABEL_TOKENS = (12, 28)  # least and most, begin and end token included
_SHAPE = 2.0  # of the beta distribution of lengths: few are very short, and most far below the longest


class TypicalPrompt:
    """What the pipeline needs of a `Prompt`, without a tokenizer: a token for each word."""

    begin_id, end_id, _word_id = 1, 2, 3
    end_ids, after = (end_id,), ()

    def instruction(self, source: str, target: str) -> list[int]:
        """Begin token and instruction, in any language."""
        del source, target
        return [self.begin_id] + [self._word_id] * (INSTRUCTION_TOKENS - 1)

    def label(self, text: str) -> list[int]:
        """Begin token, text, end token."""
        return [self.begin_id, *[self._word_id] * len(text.split()), self.end_id]


def draw_frames(count: int, seconds: ClipSeconds, seed: int = 0) -> np.ndarray:
    """int[count]: how many frames clips have."""
    longest = round(seconds.longest * FRAME_RATE)
    rest = _SHAPE * (seconds.longest / seconds.mean - 1)
    if not rest:
        return np.full(count, longest)
    shares = np.random.default_rng(seed).beta(_SHAPE, rest, count)
    return np.maximum(1, np.round(longest * shares)).astype(int)


def draw_clips(
    count: int, seconds: ClipSeconds, compressions: Sequence[Compression] = (CLUSTERS,), seed: int = 0
) -> list[Arrays]:
    """Records as the pipeline hands them on, but with features of width 1, all zero; each compression in its turn."""
    rng = np.random.default_rng(seed)
    (mean, deviation), typical = KEPT, sum(LABEL_TOKENS) / 2
    clips = []
    for number, frames in enumerate(draw_frames(count, seconds, seed)):
        clips_of_vasr = frames / FRAMES
        share = rng.normal(mean, deviation / clips_of_vasr**0.5)
        segments = int(np.clip(round(frames * share), 1, frames))
        cuts = np.sort(rng.choice(np.arange(1, frames), segments - 1, replace=False))
        counts = np.diff(cuts, prepend=0, append=frames).astype(np.int32)
        more = (rng.integers(LABEL_TOKENS[0], LABEL_TOKENS[1] + 1) - typical) * clips_of_vasr**0.5
        clips.append({
            "id": f"clip{number}",
            "features": np.zeros((frames, 1), np.float16),
            "cluster_counts": compressions[number % len(compressions)].run_lengths(counts),
            "transcript": "chữ " * max(1, round(typical * clips_of_vasr + more) - 2),
            "source_language": "vi",
            "target_language": "vi",
        })  # fmt: skip
    return clips
