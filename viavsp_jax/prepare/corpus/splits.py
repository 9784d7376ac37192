"""Gives every clip a split: that of the corpus, or one that is drawn, whole sources at a time.

A source is a speaker, or the recording that clips were cut from. With clips of one source in training and validation, a
model is judged by faces and voices that it knows.
"""

import collections
import dataclasses
import logging
from collections.abc import Sequence

import numpy as np

from viavsp_jax.prepare.corpus.entries import Entry, condition_of, sorted_splits
from viavsp_jax.runtime.errors import InputError

log = logging.getLogger(__name__)


def with_splits(entries: Sequence[Entry], valid: float | None, seed: int) -> list[Entry]:
    """Where no splits are told, all clips are for training; of these, a share `valid` is taken for validation.

    Raises InputError if those of some clips are told and those of others are not, if there is a validation split
    already, or there are too few sources for two splits.
    """
    unclear = [one for one in entries if one.split is None]
    if unclear and len(unclear) < len(entries):
        told = sorted_splits(one.split for one in entries if one.split)
        raise InputError(
            f"{unclear[0].video}: nothing tells its split, nor that of {len(unclear):,} clips in all, while others are "
            f"of {', '.join(told)}, expected names of files or folders that tell it, or a column."
        )
    entries = [dataclasses.replace(one, split=one.split or "train") for one in entries]
    splits = {one.split for one in entries}
    if valid is None:
        if "valid" not in splits:
            log.info(
                "there is no validation split, which training needs: --valid 0.03 takes it from training, by source"
            )
        return entries
    if "valid" in splits:
        raise InputError(f"--valid is {valid:g}, but the corpus has a validation split, expected no --valid.")
    chosen = _drawn([one for one in entries if one.split == "train"], valid, seed)
    return [dataclasses.replace(one, split="valid") if _source(one) in chosen and one.split == "train" else one
            for one in entries]  # fmt: skip


def _drawn(entries: Sequence[Entry], share: float, seed: int) -> set[str]:
    """Some of the sources, in a random order until they have that share of the clips; never all of them."""
    sizes = collections.Counter(map(_source, entries))
    if len(sizes) < 2:
        raise InputError(
            f"--valid is {share:g}, but all training clips are of one speaker or recording, expected several of them."
        )
    order = [sorted(sizes)[index] for index in np.random.default_rng(seed).permutation(len(sizes))]
    chosen, count, wanted = set(), 0, share * len(entries)
    for name in order[:-1]:
        # A source that is much larger than what is wanted is passed over while others are left.
        if count and abs(count + sizes[name] - wanted) >= wanted - count:
            continue
        chosen.add(name)
        count += sizes[name]
        if count >= wanted:
            break
    what = "clips, since none has a source" if not any(one.source for one in entries) else "sources"
    log.info("valid: %d of %d %s drawn, %d of %d clips", len(chosen), len(sizes), what, count, len(entries))
    return chosen


def _source(entry: Entry) -> str:
    """What is kept together; a clip of unknown source is one of its own."""
    return f"source {entry.source}" if entry.source else f"clip {entry.id}"


def without_repeated(entries: Sequence[Entry]) -> list[Entry]:
    """Marks as unusable what is there twice: of clips with one id the first of a split is kept, and in training none
    that is tested or validated with."""
    first: dict[tuple[str, str], Entry] = {}
    held_out = {
        one.id: one.split for one in reversed(entries) if condition_of(one.split)[0] != "train" and not one.reason
    }
    found = []
    for one in entries:
        reason = one.reason
        if not reason:
            before = first.setdefault((one.split, one.id), one)
            if before is not one:
                reason = f"repeated id: {one.video}, the clip is also {before.video}"
            elif one.split in ("train", "valid") and held_out.get(one.id, one.split) != one.split:
                reason = f"held out: the clip is in {held_out[one.id]} too"
        found.append(dataclasses.replace(one, reason=reason))
    return found
