"""The report of an evaluation: report.json for programs, report.html for people.

report.json holds what the evaluation was made with (checkpoint, split, search), then for each shard folder, under its
key (see viavsp_jax/evaluation/report/results.py), what `analysis.score` gives, and under `analysis`, again by key, what
`analysis.analyse` gives. The page shows all of it, the curves of the training and, that of the work folder, how other
evaluations did; it needs no other file and no network.
"""

import functools
import operator
import pathlib
from collections.abc import Mapping, Sequence

import jinja2
from etils import epath
from markupsafe import Markup

from viavsp_jax.data.compression import split_name
from viavsp_jax.data.examples import MODALITIES
from viavsp_jax.evaluation.report import analysis, confidence, figures, results
from viavsp_jax.evaluation.report.comparison import Evaluation, compare
from viavsp_jax.evaluation.report.conditions import (
    CLEAN,
    INTERFERERS,
    THEIR_SOURCE,
    Condition,
    Point,
    by_positions,
    sets_of,
    theirs_of,
)
from viavsp_jax.evaluation.report.events import Curve, read_curves
from viavsp_jax.evaluation.report.results import About, Report, Reports
from viavsp_jax.evaluation.vietnamese import TONES
from viavsp_jax.runtime.atomic import write_bytes


def make_report(about: About, tables: Mapping[str, Sequence[analysis.Row]], channels: Mapping[str, str]) -> Report:
    """What report.json is to hold, from the rows of each shard folder by its name.

    `about` goes in front: checkpoint, split, search. `channels` is what `ids.read_channels` gives.
    """
    about, keys = results.about_of(about), {name: results.key_of(name, about) for name in tables}
    return {
        **about,
        **{keys[name]: analysis.score(rows) for name, rows in tables.items()},
        "evaluations": {key: dict(about) for key in keys.values()},
        "analysis": {keys[name]: analysis.analyse(name, rows, channels) for name, rows in tables.items()},
    }


def write_report(workdir: epath.PathLike, report: Report) -> None:
    """Keeps a report with what there is of the same evaluation, and writes those of the work folder anew.

    Raises InputError if something there is damaged.
    """
    kept = results.read_all(workdir)
    name = results.folder_name(results.about_of(report), kept)
    kept[name] = results.joined(kept.get(name), report)
    write_reports(workdir, kept, (name,))


def write_reports(workdir: epath.PathLike, kept: Reports, names: Sequence[str]) -> None:
    """Writes report.json and report.html of these evaluations, and of the work folder by the last of them.

    The page has the curves of the training there.
    """
    workdir = epath.Path(workdir)
    curves, last = read_curves(workdir / "tensorboard"), kept[names[-1]]
    others = compare(workdir, kept, names[-1]) if len(kept) > 1 else ()
    places = {workdir / results.PLACE / name: (kept[name], ()) for name in names} | {workdir: (last, others)}
    for folder, (report, compared) in places.items():
        write_bytes(folder / results.FILE, results.as_json(report))
        write_bytes(folder / "report.html", render(report, curves, compared).encode())


def check_reports(workdir: epath.PathLike) -> None:
    """Raises InputError if something is damaged that would only be met when new results are there to be written."""
    for name, report in results.read_all(workdir).items():
        folder = epath.Path(workdir) / results.PLACE / name
        try:
            render(report, {})
        except Exception as error:  # what a template raises for other things than it expects is of every kind
            path = (folder if folder.exists() else epath.Path(workdir)) / results.FILE
            raise results.not_a_report(path, error) from error
        for key, about in report["evaluations"].items():
            if (table := folder / f"{results.name_of(key, about)}.tsv").exists():
                results.read_table(table)


def render(report: Report, curves: Mapping[str, Curve], compared: Sequence[Evaluation] = ()) -> str:
    """The page of a report, of the curves of its training (see `read_curves`) and of what it is compared with."""
    folder = pathlib.Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,  # transcripts and names are anybody's text
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda fraction, digits=1: f"{100 * fraction:.{digits}f}"
    details = report["analysis"]
    reliability = {name: confidence.of_json(one["confidence"]) for name, one in details.items() if "confidence" in one}
    if len(reliability) > 1:
        reliability["all sets"] = functools.reduce(operator.add, reliability.values())
    all_sets = sets_of(report)
    compressed = by_positions(report, all_sets)
    sets = {one: names for one, names in all_sets.items() if not one.compression}
    seen = {one: names for one, names in sets.items() if one == one.seen}
    with_lost, theirs = {one.seen for one in sets if one != one.seen}, theirs_of(report, sets)
    own = [results.name_of(key, about) for key, about in report["evaluations"].items()]
    return environment.get_template("page.html").render(
        report=report,
        written={name: report[name] for name in details if "wer" in report[name]},
        spoken={name: part["spoken_form"] for name, part in details.items() if "spoken_form" in part},
        translated={name: report[name] for name in details if "bleu" in report[name]},
        details=details,
        search_of=results.search_of,
        about=results.about_of(report),
        compared=compared,
        compared_sets=list(dict.fromkeys(own + sorted({name for one in compared for name in one.scores}))),
        conditions=seen,
        lost={one: names for one, names in sets.items() if one.seen in with_lost},
        reliability=reliability,
        reliability_figure=figures.reliability_figure(list(reliability.values())[-1]) if reliability else "",
        compressed=compressed,
        compression_figures=[_compression_figure(group) for group in compressed.values()],
        modalities=[x for x in MODALITIES if any(x in names for names in sets.values())],
        theirs=theirs,
        their_source=THEIR_SOURCE,
        noise_figures=_noise_figures(report, seen, theirs),
        training_figures=figures.training_figures(curves),
        tones=list(TONES.values()),
        style=Markup((folder / "page.css").read_text(encoding="utf-8")),
    )


def _compression_figure(group: Mapping[str, Sequence[Point]]) -> Markup:
    """Of sets that differ in compression, or modality, alone."""
    first = next(iter(group.values()))[0].name
    lines = {
        modality: [(one.positions, one.scores["wer"], one.scores["wer_interval"]) for one in points]
        for modality, points in group.items()
    }
    return figures.compression_figure(split_name(first)[0].partition("_")[2], lines)


def _noise_figures(
    report: Report, sets: Mapping[Condition, Mapping[str, str]], theirs: Mapping[str, float]
) -> list[Markup]:
    """One for each kind of noise at several SNR, from sets of which nothing is lost."""
    result, clean = [], sets.get(CLEAN, {})
    for noise in dict.fromkeys(one.noise for one in sets if one.noise):
        chosen = {one: names for one, names in sets.items() if one.noise == noise}
        if len({one.snr_db for one in chosen}) < 2:
            continue
        counted = any(one.interferers for one in chosen)
        lines: dict[figures.Line, list[figures.NoisePoint]] = {}
        # Clean is the end of every line of its modality; where there is no other point, it is a line by itself.
        for modality in dict.fromkeys([*clean, *(x for names in chosen.values() for x in names)]):
            named: dict[int | None, list[tuple[float | None, str]]] = {}
            for one, names in chosen.items():
                if modality in names:
                    named.setdefault(one.talkers if counted else None, []).append((one.snr_db, names[modality]))
            for number, points in (named or {None: []}).items():
                points += [(None, clean[modality])] if modality in clean else []
                lines[modality, number] = [(snr, report[x]["wer"], report[x]["wer_interval"]) for snr, x in points]
        result.append(figures.noise_figure(noise, lines, theirs if noise == INTERFERERS else {}))
    return result
