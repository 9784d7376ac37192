"""Whether the tokenizer can write what is said in a corpus."""

import collections
import dataclasses
import unicodedata
from collections.abc import Sequence

import numpy as np

from viavsp_jax.data.lengths import Split
from viavsp_jax.data.prompt import Prompt, one_line
from viavsp_jax.data.prompt_ids import text_ids
from viavsp_jax.runtime.errors import InputError

SAMPLE = 2_048  # transcripts that are written and read back
MANY_PIECES = 0.2  # of the tokens
USELESS = 0.1  # share of unknown tokens from which on training is refused
_SHOWN = 12
_BROKEN = "\ufffd"  # what a part of a character is read as


@dataclasses.dataclass(frozen=True)
class Coverage:
    """What a tokenizer makes of transcripts."""

    tokens: int
    words: int
    unknown: int  # tokens
    pieces: int  # tokens that are bytes of a character
    lost: dict[str, str]  # characters that cannot be written, each with the id of a clip with it
    changed: tuple[str, str, str] | None  # id, text and what comes back of it, where its characters could be written
    num_changed: int

    def __str__(self) -> str:
        tokens = max(self.tokens, 1)
        return (
            f"{tokens / max(self.words, 1):.1f} tokens a word, {self.unknown / tokens:.1%} of them unknown, "
            f"{self.pieces / tokens:.1%} pieces of characters"
        )


def cover(prompt: Prompt, splits: Sequence[Split]) -> Coverage:
    """Looks at all characters of the transcripts, and at SAMPLE whole ones of each split.

    Raises InputError for a transcript with a token for which the model has no embedding.
    """
    lost, counts, changed = _lost(prompt, splits), collections.Counter(), []
    for split in splits:
        records = split.records
        size = len(records.ids)
        for i in np.unique(np.linspace(0, size - 1, min(size, SAMPLE)).astype(int)).tolist():
            text = records.transcripts[i]
            try:
                back = prompt.text(prompt.label(text))
            except InputError as error:
                raise InputError(f"record {records.ids[i]} of {split.name} ({split.source.split}): {error}") from None
            counts.update(text_ids(prompt.tokenizer, text))
            counts["words"] += len(text.split())
            if back != one_line(text) and lost.keys().isdisjoint(text):
                changed.append((records.ids[i], one_line(text), back))
    words = counts.pop("words", 0)
    pieces = {one for one in counts if _BROKEN in prompt.tokenizer.decode([one])}
    return Coverage(
        tokens=counts.total(),
        words=words,
        unknown=counts[prompt.tokenizer.unk_token_id],
        pieces=sum(counts[one] for one in pieces),
        lost=lost,
        changed=changed[0] if changed else None,
        num_changed=len(changed),
    )


def _lost(prompt: Prompt, splits: Sequence[Split]) -> dict[str, str]:
    """The characters that do not come back from the tokenizer, each with the id of a clip with it."""
    characters = set().union(*(set("".join(split.records.transcripts)) for split in splits))
    lost = {}
    for one in sorted(characters):
        if one.isspace() or unicodedata.category(one) == "Cc":  # one_line makes spaces of them
            continue
        back = prompt.tokenizer.decode(text_ids(prompt.tokenizer, one), skip_special_tokens=True)
        if one not in back:
            lost[one] = next(
                id
                for split in splits
                for id, text in zip(split.records.ids, split.records.transcripts, strict=True)
                if one in text
            )
    return lost


def warnings(found: Coverage) -> list[str]:
    """What may be a mistake, a sentence each."""
    told = []
    if found.lost:
        several = ", ".join(f"{_shown(one)} ({id})" for one, id in list(found.lost.items())[:_SHOWN])
        more = f" and {len(found.lost) - _SHOWN} more" if len(found.lost) > _SHOWN else ""
        told.append(
            f"the tokenizer cannot write {len(found.lost)} of the characters in the transcripts, each with a clip that "
            f"has it: {several}{more}: the model will never write them; replace them in the transcripts, or take a "
            "language model that knows them"
        )
    if found.changed:
        id, text, back = found.changed
        told.append(
            f"{found.num_changed} transcripts do not come back from the tokenizer as they are, the first of record "
            f"{id}: {text[:80]!r} becomes {back[:80]!r}: write the transcripts as the tokenizer does"
        )
    if found.pieces > MANY_PIECES * found.tokens:
        told.append(
            f"{found.pieces / found.tokens:.0%} of the label tokens are bytes of characters that the tokenizer has no "
            "token for: labels are long, and the model has hardly seen such text; take one that knows the language"
        )
    return told


def check(found: Coverage) -> None:
    """InputError where so much cannot be written that no model could learn the texts."""
    if found.unknown > USELESS * found.tokens:
        raise InputError(
            f"{found.unknown / found.tokens:.0%} of the label tokens are unknown to the tokenizer: take a language "
            "model that knows the language of the transcripts, or write them as it does (case, Unicode form)"
        )


def _shown(character: str) -> str:
    """A character with its number, as most that are lost look like others."""
    return f"{character!r} U+{ord(character):04X}"
