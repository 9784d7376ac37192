"""What training reads: shard folders, their records, and how these fit the rows and the tokenizer."""

from collections.abc import Sequence

import numpy as np
from etils import epath

from viavsp_jax.data import lengths
from viavsp_jax.data.clips import open_noise
from viavsp_jax.data.lengths import Split
from viavsp_jax.data.noise import BABBLE
from viavsp_jax.data.packing import ClipUnits, RowShape
from viavsp_jax.data.prompt import Prompt
from viavsp_jax.data.records import SplitSource
from viavsp_jax.data.settings import DataSettings
from viavsp_jax.data.sources import LeftOut, count_fields, open_sources
from viavsp_jax.data.vocabulary import FILE, learn, read
from viavsp_jax.preflight import rows, texts
from viavsp_jax.preflight.findings import UNKNOWN, Findings
from viavsp_jax.run_settings import CTCSettings
from viavsp_jax.runtime.errors import InputError

# Settings that these checks rest on; a folder's content fits or does not fit the encoder's.
_FOLDERS = ("data.path", "data.train", "data.compression", "data.feature_width", "encoder.train")
_LENGTHS = ("data.row", "data.too_long", "data.augment", *_FOLDERS)


def look_at_corpus(
    found: Findings,
    data: DataSettings,
    prompt: Prompt,
    workdir: epath.Path,
    whole: DataSettings,
    ctc: CTCSettings,
    init_from: str,
) -> tuple[LeftOut, ClipUnits | None]:
    """All checks of what training reads, and what it needs for a CTC head.

    `prompt` and `workdir` may be UNKNOWN, and so may what is returned. `whole` has the rows of the config, where those
    of `data` were made shorter for many devices.
    """
    splits, complete = [], True
    for kind in ("train", "valid"):
        for name in data.train:
            split = _read(found, data, prompt, name, kind)
            complete = complete and split is not UNKNOWN
            splits += [split] * (split is not UNKNOWN)
    if data.of_clips and data.augment.noise_probability:
        for kind in data.augment.noise_kinds:
            if kind != BABBLE:
                found.ask(f"noise {kind}", open_noise, kind, "train", settings=("data.augment",))
    if not splits:
        found.passed_over += ["rows and window", "characters of the transcripts"]
        return UNKNOWN, None
    _count(found, splits)
    found.warnings += _twice(splits)
    _look_at_texts(found, prompt, splits)
    listed_in = None if workdir is UNKNOWN else workdir
    left_out = found.ask("rows and window", lengths.check, data, prompt, splits, listed_in, settings=_LENGTHS)
    training = [split for split in splits if split.source.split == "train"]
    if training and prompt is not UNKNOWN:
        found.ask("filling of rows", _look_at_rows, found, data, whole, prompt, splits, training, left_out is UNKNOWN,
                  settings=_LENGTHS)  # fmt: skip
    if not (complete and ctc.weight and workdir is not UNKNOWN):
        return (left_out if complete else UNKNOWN), None
    clip_units = found.ask(
        "units of the CTC head", _clip_units, data, ctc, splits, _homes(workdir, init_from), settings=("ctc", *_LENGTHS)
    )
    if clip_units is not UNKNOWN:
        found.fact("units of the CTC head", f"{len(clip_units.units):,}")
    return left_out, clip_units


def _homes(workdir: epath.Path, init_from: str) -> list[epath.Path]:
    """Folders that may hold units already: of this run, then of the one whose weights it begins with."""
    source = epath.Path(init_from)
    return [workdir, source, source.parent.parent] if init_from else [workdir]


def _clip_units(
    data: DataSettings, ctc: CTCSettings, splits: Sequence[Split], folders: Sequence[epath.Path]
) -> ClipUnits:
    """With the units of the first folder that has any, or with new ones. Raises InputError if they are too many."""
    units = next((read(folder) for folder in folders if (folder / FILE).exists()), None)
    if units is None:
        texts = (text for one in splits if one.source.split == "train" for text in one.records.transcripts)
        units = learn(texts, ctc.units)
    if len(units) > ctc.units:
        raise InputError(f"config.ctc.units is {ctc.units}, expected at least {len(units)}, as there are already")
    # Longer clips are left out, or keep training from starting: `lengths.check` says so.
    longest = max(int(one.records.frames.clip(max=data.row.frames).max()) for one in splits)
    return ClipUnits(units, data.row.clip_frames if data.of_clips else longest)


def _read(found: Findings, data: DataSettings, prompt: Prompt, name: str, kind: str) -> Split:
    """One split of a shard folder, as far as it can be read; UNKNOWN otherwise."""
    what = f"{name} ({kind})"
    opened = found.ask(what, open_sources, data, (name,), kind, settings=_FOLDERS)
    source = UNKNOWN if opened is UNKNOWN else opened[0]
    records = found.ask(f"content of {what}", _records, data, name, source)
    instructions = found.ask(f"content of {what}", _instructions, prompt, what, records)
    return UNKNOWN if instructions is UNKNOWN else Split(name, source, records, instructions)


def _instructions(prompt: Prompt, what: str, records: lengths.Records) -> np.ndarray:
    try:
        return lengths.instructions(prompt, records)
    except InputError as error:
        raise InputError(f"{what}, {error}") from error


def _records(data: DataSettings, name: str, source: SplitSource) -> lengths.Records:
    ways = data.compression if source.split == "train" else data.compression[:1]
    return lengths.read_lengths(source, count_fields(data, name, source.split), ways)


def _count(found: Findings, splits: Sequence[Split]) -> None:
    for kind, words in (("train", "training clips"), ("valid", "validation clips")):
        counts = [f"{split.name} {len(split.source):,}" for split in splits if split.source.split == kind]
        if counts:
            found.fact(words, ", ".join(counts))


def _twice(splits: Sequence[Split]) -> list[str]:
    """Whether a clip of the validation is trained on, too: a sentence, or none."""
    held_out: dict[str, str] = {}
    for split in splits:
        if split.source.split == "valid":
            held_out |= dict.fromkeys(split.records.ids, split.name)
    trained = {id for split in splits if split.source.split == "train" for id in split.records.ids}
    both = sorted(trained & held_out.keys())
    if not both:
        return []
    return [
        f"{len(both)} of {len(held_out)} clips of the validation are trained on, too, the first {both[0]} of "
        f"{held_out[both[0]]}: the scores by which the best checkpoint is chosen will be too good; give each id one "
        "split in the corpus"
    ]


def _look_at_texts(found: Findings, prompt: Prompt, splits: Sequence[Split]) -> None:
    # Sets of one corpus have the same texts: each clip is looked at once.
    once = {hash(tuple(split.records.transcripts)): split for split in reversed(splits)}
    covered = found.ask("characters of the transcripts", texts.cover, prompt, list(once.values()))
    if covered is UNKNOWN:
        return
    found.fact("transcripts", str(covered))
    found.warnings += texts.warnings(covered)
    found.ask("unknown tokens", texts.check, covered)


def _look_at_rows(
    found: Findings,
    data: DataSettings,
    whole: DataSettings,
    prompt: Prompt,
    splits: Sequence[Split],
    training: Sequence[Split],
    bad: bool,
) -> None:
    """How rows are filled; where records do not fit, or rows are badly filled, which row would be better."""
    clips, long = rows.sample(prompt, training), rows.longest(prompt, splits)
    if data.too_long == "skip":
        clips, long = (some.those(rows.fits(some, data.row, data.of_clips)) for some in (clips, long))
    if not len(clips):
        return
    there = rows.pack(clips, data.row, data.of_clips)
    now = there if whole.row == data.row else rows.pack(clips, whole.row, data.of_clips)
    shape, proposed = rows.propose(clips, long, whole.row, data.of_clips)
    if there is not None:
        found.fact("rows", _rows(data, data.row, there))
        found.fact("window", f"{data.row.window} positions, the longest clip takes {long.positions.max()}")
    words = f"{rows.options(shape)}: {_rows(whole, shape, proposed)}"
    if bad:
        found.warnings.append(f"a row that holds all clips, for this corpus and this tokenizer: {words}")
    elif whole.row != data.row and there is not None and there.share < rows.BADLY_FILLED:
        found.warnings.append(
            f"{1 - there.share:.0%} of the rows is padding, since a batch is cut into {data.rows} of them for as many "
            "devices: fewer devices lose less, or a larger config.data.row with a larger batch"
        )
    elif now is not None and rows.worth_it(now, proposed):
        found.warnings.append(f"rows are {now.share:.0%} filled, and the rest is computed for nothing; better: {words}")


def _rows(data: DataSettings, shape: RowShape, filling: rows.Filling) -> str:
    what = "places for clips" if data.of_clips else "positions"
    size = shape.clips if data.of_clips else shape.positions
    return (
        f"{data.rows} of {size} {what}, {filling.share:.0%} filled, with {filling.clips:.1f} clips each, "
        f"{data.rows * filling.clips:.1f} an update"
    )
