"""The report of an evaluation: report.json for programs, report.html for people.

report.json holds what is known of the run (checkpoint, split), then for each shard folder, under its name, what
`analysis.score` gives, and under `analysis`, again by name, what `analysis.analyse` gives. The page shows all of it,
and the curves of the training; it needs no other file and no network.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from etils import epath
from markupsafe import Markup

from viavsp_jax.data.atomic import write_bytes
from viavsp_jax.data.examples import MODALITIES
from viavsp_jax.report import analysis, figures
from viavsp_jax.report.events import Curve, read_curves
from viavsp_jax.vietnamese import TONES

Report = dict[str, Any]


def make_report(
    about: Mapping[str, Any], tables: Mapping[str, Sequence[analysis.Row]], channels: Mapping[str, str]
) -> Report:
    """What report.json is to hold, from the rows of each shard folder.

    `about` goes in front: checkpoint and split. `channels` is what `analysis.read_channels` gives.
    """
    scores = {name: analysis.score(rows) for name, rows in tables.items()}
    details = {name: analysis.analyse(name, rows, channels) for name, rows in tables.items()}
    return {**about, **scores, "analysis": details}


def write_report(workdir: epath.PathLike, report: Report) -> None:
    """Writes report.json and, with the curves of the training there, report.html to the work folder."""
    workdir = epath.Path(workdir)
    write_bytes(workdir / "report.json", (json.dumps(report, indent=2, ensure_ascii=False) + "\n").encode())
    write_bytes(workdir / "report.html", render(report, read_curves(workdir / "tensorboard")).encode())


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
    details = report["analysis"]
    return environment.get_template("page.html").render(
        report=report,
        written={name: report[name] for name in details if "wer" in report[name]},
        spoken={name: part["spoken_form"] for name, part in details.items() if "spoken_form" in part},
        translated={name: report[name] for name in details if "bleu" in report[name]},
        details=details,
        conditions=_conditions(report),
        modalities=[x for x in MODALITIES if any(x in names for names in _conditions(report).values())],
        noise_figures=_noise_figures(report),
        training_figures=figures.training_figures(curves),
        tones=list(TONES.values()),
        style=Markup((folder / "page.css").read_text(encoding="utf-8")),
    )


def _known(report: Report) -> dict[str, dict[str, Any]]:
    """The condition of the shard folders whose names tell it, and whose clips are recognised."""
    conditions = {name: part["condition"] for name, part in report["analysis"].items()}
    return {name: known for name, known in conditions.items() if known and "wer" in report[name]}


def _conditions(report: Report) -> dict[tuple[str | None, float | None], dict[str, str]]:
    """Name of the shard folder by (noise, SNR), then by modality; clean first, then by noise from high SNR to low."""
    found: dict[tuple[str | None, float | None], dict[str, str]] = {}
    for name, known in _known(report).items():
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
