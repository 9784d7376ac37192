"""Random clips of VASR's sizes, since VASR itself is gated, with real run lengths and with labels to tell apart."""

import pathlib

import numpy as np
import tokenizers
import transformers

from viavsp_jax.aot.typical_clips import FRAMES, LABEL_TOKENS
from viavsp_jax.data import records
from viavsp_jax.data.examples import Example
from viavsp_jax.data.prompt import Prompt, instruction_text

FOLDER = "av_clean"  # of shards, as configs/base.py names it
# One line a clip; 59.5 % of the frames are left when each run becomes one segment.
RUN_LENGTHS = pathlib.Path(__file__).parents[1] / "tests" / "golden" / "run_lengths" / "lrs3_test.cluster_counts"

# A token for each number and for at most three letters of other words: the instruction takes 15 tokens, begin token
# included, about as many as with VinaLLaMA's tokenizer.
_TOKEN = r"\d+|\w{1,3}:?|\."
_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")


def make_prompt(vocab_size: int) -> Prompt:
    """A prompt whose tokenizer has `vocab_size` tokens, most of them numbers: a transcript of n numbers has n."""
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(_TOKEN), behavior="removed", invert=True)
    pieces = [piece for piece, _ in split.pre_tokenize_str(instruction_text("vi", "vi"))]
    tokens = [*_SPECIAL, *dict.fromkeys(pieces)]
    tokens += map(str, range(vocab_size - len(tokens)))
    ids = {token: number for number, token in enumerate(tokens)}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<unk>"))
    model.pre_tokenizer = split
    named = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return Prompt(transformers.PreTrainedTokenizerFast(tokenizer_object=model, **named), "</s>")


def draw_run_lengths(rng: np.random.Generator, count: int) -> list[np.ndarray]:
    """Run lengths int32[U] of `count` clips, each from a random place of the real ones on, the last cut to fit."""
    runs = np.array(RUN_LENGTHS.read_text(encoding="utf-8").split(), np.int32)
    drawn = []
    for start in rng.integers(0, len(runs) - FRAMES, count):
        ends = np.minimum(np.cumsum(runs[start : start + FRAMES]), FRAMES)
        lengths = np.diff(ends, prepend=0)
        drawn.append(lengths[lengths > 0].astype(np.int32))
    return drawn


def draw_clips(count: int, feature_width: int, vocab_size: int, seed: int = 0) -> list[Example]:
    """Records as the shards hold them: normal features, transcripts of random numbers (see `make_prompt`)."""
    rng = np.random.default_rng(seed)
    words = vocab_size - 2 * FRAMES  # fewer than there are numbers
    least, most = LABEL_TOKENS
    return [
        {
            "id": f"clip{number}",
            "features": rng.standard_normal((FRAMES, feature_width), np.float32).astype(np.float16),
            "cluster_counts": counts,
            "transcript": " ".join(map(str, rng.integers(0, words, rng.integers(least, most + 1) - 2))),
            "source_language": "vi",
            "target_language": "vi",
        }
        for number, counts in enumerate(draw_run_lengths(rng, count))
    ]


def write_shards(folder: pathlib.Path, splits: dict[str, list[Example]]) -> None:
    """Writes clips, by split, as the dataset that configs/base.py trains on."""
    folder = folder / FOLDER
    for split, clips in splits.items():
        records.write_shard(records.shard_path(folder, split, 0, 1), clips)
    (first, *_), *_ = splits.values()
    records.write_metadata(folder, first["features"].shape[1], splits)
