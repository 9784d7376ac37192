"""Random clips of VASR's sizes, to reckon with where the real ones are not at hand."""

import numpy as np

from viavsp_jax.data.packing import Arrays

FRAMES = 76  # 3 s at 25 fps
# Share of the frames left when every run of one cluster becomes one segment: mean and standard deviation over clips, of
# the parent project's English test set.
KEPT = (0.595, 0.065)
INSTRUCTION_TOKENS = 15
LABEL_TOKENS = (12, 28)  # least and most, begin and end token included


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


def draw_clips(count: int, seed: int = 0) -> list[Arrays]:
    """Records as the shards hold them, but with features of width 1, all zero."""
    rng = np.random.default_rng(seed)
    mean, deviation = KEPT
    clips = []
    for number in range(count):
        segments = int(np.clip(round(FRAMES * rng.normal(mean, deviation)), 1, FRAMES))
        cuts = np.sort(rng.choice(np.arange(1, FRAMES), segments - 1, replace=False))
        words = rng.integers(LABEL_TOKENS[0], LABEL_TOKENS[1] + 1) - 2
        clips.append({
            "id": f"clip{number}",
            "features": np.zeros((FRAMES, 1), np.float16),
            "cluster_counts": np.diff(cuts, prepend=0, append=FRAMES).astype(np.int32),
            "transcript": "chữ " * words,
            "source_language": "vi",
            "target_language": "vi",
        })  # fmt: skip
    return clips
