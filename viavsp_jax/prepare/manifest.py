"""Stage 1: the usable clips of a corpus, as one list for each split.

The corpus may be laid out in any of the ways that prepare/corpus/ knows; which it is, is found out and said. Writes
`{split}.tsv` and `{split}.wrd` and, where clips were left out, `skipped.jsonl` (split, id, reason). Where a corpus does
not say how long its clips are, their files are looked at, and what was found is kept in `lengths/`.

Transcripts are written in Unicode NFC, with single spaces and without what is not seen: a tab or a line break would
break the files, and one letter in two spellings would be two to the model.
"""

import argparse
import collections
import dataclasses
import logging
import os
from collections.abc import Sequence

import pandas as pd
from etils import epath
from tqdm import tqdm

from viavsp_jax.data.features import FRAME_RATE, SAMPLE_RATE
from viavsp_jax.data.ids import Files
from viavsp_jax.prepare import measure, transcripts
from viavsp_jax.prepare.corpus import columns, layouts, splits
from viavsp_jax.prepare.corpus.entries import Corpus, Entry, Sizes, is_file_name, sorted_splits, split_name
from viavsp_jax.prepare.manifest_files import MAX_FRAMES, Clip, find_file, lengths_differ, splits_of, write_manifest
from viavsp_jax.prepare.skipped import SKIPPED_FILE, write_skipped
from viavsp_jax.runtime.errors import InputError
from viavsp_jax.runtime.options import MAX_SEED, Renamed, new_folder, real, whole, with_defaults

_LOST_LETTER = "\N{REPLACEMENT CHARACTER}"  # stands where text was damaged
_MOSTLY = 0.5  # share of clips from which on they are no exceptions

log = logging.getLogger(__name__)

Skipped = list[tuple[str, str]]  # id, reason


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the stage."""
    parser.add_argument("--data", required=True, help="corpus: a folder, a tar archive or a table")
    layouts.add_arguments(parser)
    parser.add_argument(
        "--output", type=new_folder("--output"), required=True, help="folder for {split}.tsv and {split}.wrd"
    )
    parser.add_argument("--split", nargs="+", metavar="SPLIT", help="splits to list (default: all there are)")
    parser.add_argument(
        "--valid",
        type=real("--valid", above=0, at_most=0.5),
        metavar="SHARE",
        help="share of the training clips to validate with, whole speakers or recordings, where there is no such split",
    )
    parser.add_argument(
        "--frac",
        type=real("--frac", above=0, at_most=1),
        default=1.0,
        help="fraction of each channel's (speaker's, recording's) clips to take (default 1.0: all)",
    )
    parser.add_argument(
        "--seed", type=whole("--seed", 0, MAX_SEED), default=0, help="seed of --valid and --frac (default 0)"
    )
    parser.add_argument(
        "--workers",
        type=whole("--workers", 0),
        default=min(8, os.cpu_count() or 1),
        help="processes that look at media; 0: none",
    )
    for name, what in (("source", "that is spoken"), ("target", "of the transcripts")):
        parser.add_argument(
            f"--{name}_language", f"--{name}-language", action=Renamed, default="vi",
            help=f"language {what} (default vi)",
        )  # fmt: skip
    transcripts.add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Writes the manifests. Raises InputError if the corpus or a table in it is not as its layout has it.

    Options that a caller from Python leaves out have their defaults.
    """
    args = with_defaults(args, add_arguments)
    for language in (args.source_language, args.target_language):
        if not language.isalnum():
            raise InputError(f"language {language!r} is not usable in a manifest, expected a code like vi.")
    data = epath.Path(args.data).resolve()
    if not os.fspath(data).isprintable():
        raise InputError(f"--data is {os.fspath(data)!r}, expected a path without line breaks and the like.")
    with_sources = args.frac < 1 or args.valid is not None
    corpus = layouts.read_corpus(data, args.layout, columns.parse(args.columns), with_sources)
    log.info("%s", corpus.what)
    entries = splits.without_repeated(splits.with_splits(corpus.entries, args.valid, args.seed))
    there = sorted_splits(one.split for one in entries)
    chosen = list(dict.fromkeys(split_name(split) or split for split in args.split or there))
    for split in chosen:
        if split not in there:
            raise InputError(f"{data}: no clip of split {split!r}, but of {there}.")
    if not args.split and (stale := [split for split in splits_of(args.output) if split not in there]):
        raise InputError(f"{args.output}: lists {stale} of another corpus or --valid, expected another --output.")
    by_split = {split: _sampled([one for one in entries if one.split == split], args, data) for split in chosen}
    found = _with_sizes(corpus, [one for part in by_split.values() for one in part], args)
    cleaner = transcripts.Cleaner(args.target_language, args)
    listed = [
        _list_split(corpus, split, [one for one in found if one.split == split], cleaner, args) for split in chosen
    ]
    for split, (clips, skipped) in zip(chosen, listed, strict=True):  # all of them, or none
        _write_split(corpus, split, clips, skipped, args)
    if summary := cleaner.summary():
        log.info("%s", summary)
    if cleaner.capitals > _MOSTLY * cleaner.seen:
        log.info("%d of %d transcripts are in capitals alone: --lower_case", cleaner.capitals, cleaner.seen)


def _sampled(entries: list[Entry], args: argparse.Namespace, data: epath.Path) -> list[Entry]:
    """A fraction of the clips of each source, in their order; those of small sources and of none are one source."""
    usable, others = [one for one in entries if not one.reason], [one for one in entries if one.reason]
    if args.frac == 1 or not usable:
        return entries
    sources = pd.Series([one.source for one in usable])
    unknown = [one.id for one in usable if not one.source]
    if len(unknown) == len(usable):
        log.warning("%s: no channel, speaker or recording is known, so clips are sampled without regard to it", data)
    elif unknown:
        log.warning(
            "%s: no channel or speaker of %d clips is known, first of %r; they are sampled as one",
            data, len(unknown), unknown[0],
        )  # fmt: skip
    sizes = sources.map(sources.value_counts())
    sources = sources.where((args.frac * sizes).round() >= 1, "")
    kept = sources.groupby(sources, sort=True).sample(frac=args.frac, random_state=args.seed)
    return [usable[index] for index in sorted(kept.index)] + others


def _with_sizes(corpus: Corpus, entries: Sequence[Entry], args: argparse.Namespace) -> list[Entry]:
    """The same, each with sizes or a reason. Raises InputError if most are no clips of a mouth."""
    unknown = [one for one in entries if one.sizes is None and not one.reason]
    files = Files(corpus.root)
    places = [
        dataclasses.replace(
            one, video=find_file(files, one.video) or one.video, audio=find_file(files, one.audio) or one.audio
        )
        for one in unknown
    ]
    found = measure.measure(os.fspath(corpus.root), places, epath.Path(args.output) / "lengths", args.workers)
    others = [one for one in found if isinstance(one, str) and one.startswith(measure.NOT_A_MOUTH)]
    if len(others) > _MOSTLY * len(found):
        raise InputError(
            f"{corpus.root}: {len(others):,} of {len(found):,} clips are no mouth crops, the first "
            f"{others[0].removeprefix(measure.NOT_A_MOUTH + ': ')}; make them by prepare mouths --data."
        )
    known = iter(
        dataclasses.replace(place, **({"reason": one} if isinstance(one, str) else {"sizes": one}))
        for place, one in zip(places, found, strict=True)
    )
    return [next(known) if one.sizes is None and not one.reason else one for one in entries]


def _list_split(
    corpus: Corpus, split: str, entries: Sequence[Entry], cleaner: transcripts.Cleaner, args: argparse.Namespace
) -> tuple[list[Clip], Skipped]:
    """The usable clips, and the others. Raises InputError if there are none."""
    clips, skipped, files = [], [], Files(corpus.root)
    for one in tqdm(entries, desc=f"{split} manifest", unit="clip"):
        text = cleaner(one.transcript) if isinstance(one.transcript, str) and not one.reason else ""
        reason, media = one.reason or _reason_to_skip(one, one.sizes, text), []
        for address in () if reason else (one.video, one.audio):
            media.append(find_file(files, address))
            if media[-1] is None:
                reason = f"missing file: {corpus.root / address}"
                break
        if reason:
            skipped.append((one.id, reason))
        else:
            sizes = one.sizes.frames, one.sizes.samples
            clips.append(Clip(one.id, args.source_language, args.target_language, *media, *sizes, text))
    if not clips:
        id, reason = skipped[0] if skipped else ("", "none was sampled")
        raise InputError(f"{corpus.root}: no clip of split {split!r} is usable, the first: {id} {reason}.")
    return clips, skipped


def _write_split(corpus: Corpus, split: str, clips: Sequence[Clip], skipped: Skipped, args: argparse.Namespace) -> None:
    output = epath.Path(args.output)
    write_skipped(output, ({"split": split, "id": id, "reason": reason} for id, reason in skipped), split)
    write_manifest(output, split, os.fspath(corpus.root), clips)
    counts = collections.Counter(reason.split(":")[0] for _, reason in skipped)
    where = f" {dict(counts)}, see {output / SKIPPED_FILE}" if skipped else ""
    log.info("%s: %d clips listed, %d skipped%s", split, len(clips), len(skipped), where)


def _reason_to_skip(entry: Entry, sizes: Sizes, text: str) -> str | None:
    """Why a clip cannot be used, as `kind: detail`, or None."""
    frames, samples = sizes.frames, sizes.samples
    if frames < 1 or samples < 1:
        return f"no content: {frames} frames, {samples} samples"
    if frames > MAX_FRAMES:
        return f"too long: {frames} frames, at most {MAX_FRAMES}"
    if lengths_differ(frames, samples):
        return f"different lengths: {_seconds(frames, FRAME_RATE)} of video, {_seconds(samples, SAMPLE_RATE)} of audio"
    if not is_file_name(entry.id):
        return f"unusable id: {entry.id!r:.90}, expected at most 200 bytes without control characters"
    if not (entry.video + entry.audio).isprintable():
        return f"unusable name of a file: {entry.video!r:.200}, expected one without line breaks and the like"
    if not text:
        return f"no transcript: {entry.transcript!r:.40}"
    if _LOST_LETTER in text:
        return f"damaged transcript: has {_LOST_LETTER} in place of a letter"
    if (words := len(text.split())) > frames:
        return f"too many words: {words} in {frames} frames"
    return None


def _seconds(count: int, rate: int) -> str:
    return f"{count / rate:.2f} s"
