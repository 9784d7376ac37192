"""The report of an evaluation: report.json for programs, report.html for people.

report.json holds what the evaluation was made with (checkpoint, split, search), then for each shard folder, under its
key (see viavsp_jax/evaluation/report/results.py), what `analysis.score` gives, and under `analysis`, again by key, what
`analysis.analyse` gives. The page shows all of it, and the curves of the training; it needs no other file and no
network.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence

import jinja2
from etils import epath
from markupsafe import Markup

from viavsp_jax.data.examples import MODALITIES
from viavsp_jax.evaluation.report import analysis, figures, results
from viavsp_jax.evaluation.report.events import Curve, read_curves
from viavsp_jax.evaluation.report.results import About, Report
from viavsp_jax.evaluation.vietnamese import TONES
from viavsp_jax.runtime.atomic import write_bytes


def make_report(about: About, tables: Mapping[str, Sequence[analysis.Row]], channels: Mapping[str, str]) -> Report:
    """What report.json is to hold, from the rows of each shard folder by its name.

    `about` goes in front: checkpoint, split, search. `channels` is what `ids.read_channels` gives.
    """
    keys = {name: results.key_of(name, about) for name in tables}
    return {
        **about,
        **{keys[name]: analysis.score(rows) for name, rows in tables.items()},
        "evaluations": {key: dict(about) for key in keys.values()},
        "analysis": {keys[name]: analysis.analyse(name, rows, channels) for name, rows in tables.items()},
    }


def write_report(workdir: epath.PathLike, report: Report) -> None:
    """Writes report.json and, with the curves of the training there, report.html to the work folder."""
    workdir = epath.Path(workdir)
    write_bytes(workdir / results.FILE, (json.dumps(report, indent=2, ensure_ascii=False) + "\n").encode())
    write_bytes(workdir / "report.html", render(report, read_curves(workdir / "tensorboard")).encode())


def read_whole_report(workdir: epath.PathLike) -> Report | None:
    """The report of a work folder, which is to be added to; None if there is none.

    Raises InputError if something of it is damaged, which would only be met when new results are there to be written.
    """
    if report := results.read_report(workdir):
        try:
            render(report, {})
        except Exception as error:  # what a template raises for other things than it expects is of every kind
            raise results.not_a_report(workdir, error) from error
    return report


def render(report: Report, curves: Mapping[str, Curve]) -> str:
    """The page of a report and of the curves of its training (see `read_curves`)."""
    folder = pathlib.Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,  # transcripts and names are anybody's text
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda fraction, digits=1: f"{100 * fraction:.{digits}f}"
    details, evaluations = report["analysis"], report["evaluations"]
    return environment.get_template("page.html").render(
        report=report,
        written={name: report[name] for name in details if "wer" in report[name]},
        spoken={name: part["spoken_form"] for name, part in details.items() if "spoken_form" in part},
        translated={name: report[name] for name in details if "bleu" in report[name]},
        details=details,
        made_with={key: _made_with(about, report) for key, about in evaluations.items()},
        mixed=any(not _of_last(key, report) for key in evaluations),
        last=_made_with(report, report),
        conditions=_conditions(report),
        modalities=[x for x in MODALITIES if any(x in names for names in _conditions(report).values())],
        noise_figures=_noise_figures(report),
        training_figures=figures.training_figures(curves),
        tones=list(TONES.values()),
        style=Markup((folder / "page.css").read_text(encoding="utf-8")),
    )


def _of_last(key: str, report: Report) -> bool:
    """Whether results are of the checkpoint, split and search of the last evaluation: these may be compared."""
    about = report["evaluations"][key]
    return all(about.get(name) == report.get(name) for name in about.keys() | set(results.ABOUT))


def _made_with(about: About, report: Report) -> dict[str, str]:
    """For the eye: `checkpoint`, `split` and `search`."""
    update = str(about["checkpoint"])
    if about["checkpoint"] == report["checkpoint"] and about.get("weights") != report.get("weights"):
        update += " of another training"
    return {"checkpoint": update, "split": about["split"], "search": results.search_of(about)}


def _conditions(report: Report) -> dict[tuple[str | None, float | None], dict[str, str]]:
    """Name of the shard folder by (noise, SNR), then by modality; clean first, then by noise from high SNR to low.

    Of those whose names tell it and whose clips are recognised, in the last evaluation or in others made with the same.
    """
    found: dict[tuple[str | None, float | None], dict[str, str]] = {}
    for name, part in report["analysis"].items():
        if (known := part["condition"]) and _of_last(name, report) and "wer" in report[name]:
            found.setdefault((known["noise"], known["snr_db"]), {})[known["modality"]] = name
    return dict(sorted(found.items(), key=lambda item: (item[0][0] or "", -(item[0][1] or 0.0))))


def _noise_figures(report: Report) -> list[Markup]:
    """One for each kind of noise at several SNR."""
    conditions = _conditions(report)
    result = []
    for noise in dict.fromkeys(noise for noise, _ in conditions if noise):
        chosen = {snr: names for (kind, snr), names in conditions.items() if kind in (noise, None)}
        if len(chosen) - (None in chosen) < 2:
            continue
        lines: dict[str, list[figures.NoisePoint]] = {}
        for snr, names in chosen.items():
            for modality, name in names.items():
                lines.setdefault(modality, []).append((snr, report[name]["wer"], report[name]["wer_interval"]))
        result.append(figures.noise_figure(noise, lines))
    return result
