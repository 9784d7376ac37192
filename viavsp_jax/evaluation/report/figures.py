"""Plots as SVG for the page: text stays text, and colours are the page's, so that they fit light and dark."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from viavsp_jax.evaluation.report.events import Curve

# What matplotlib is told → the variable of page.css that takes its place.
_COLOURS = {
    "#000001": "var(--ink)",
    "#000002": "var(--muted)",
    "#000003": "var(--line)",
    "#000004": "var(--series-1)",
    "#000005": "var(--series-2)",
    "#000006": "var(--series-3)",
}
_INK, _MUTED, _LINE, *_SERIES = _COLOURS
# Series are told apart without colours, too.
_STYLES = [
    {"color": colour, "linestyle": line, "marker": marker, "markersize": 4}
    for colour, line, marker in zip(_SERIES, ("-", "--", ":"), ("o", "s", "^"), strict=True)
]
_SETTINGS = {
    "svg.fonttype": "none",
    "font.size": 8.5,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _MUTED,
    "axes.titlecolor": _INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.formatter.useoffset": False,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "legend.frameon": False,
    "legend.labelcolor": _INK,
    "lines.linewidth": 1.4,
    "text.parse_math": False,
}


def training_figures(curves: Mapping[str, Curve]) -> list[Markup]:
    """Loss, accuracy and learning rate over the updates, those there are."""
    plots = (
        ("Loss", "nats per token", ("train/loss", "valid/loss"), 1),
        ("Token accuracy", "%", ("train/accuracy", "valid/accuracy"), 100),
        ("Learning rate", "", ("train/learning_rate",), 1),
    )
    found = []
    for title, unit, names, factor in plots:
        if shown := {name: curves[name] for name in names if name in curves}:
            found.append(_figure(f"{title} over the updates", _draw_training, title, unit, shown, factor))
    return found


def _draw_training(axes: Axes, title: str, unit: str, curves: Mapping[str, Curve], factor: float) -> None:
    for (name, curve), style in zip(curves.items(), _STYLES, strict=False):
        marker = style["marker"] if len(curve) <= 12 else ""  # many would hide the line
        axes.plot(list(curve), [factor * y for y in curve.values()], **(style | {"marker": marker}), label=name)
    axes.set_title(f"{title}, {unit}" if unit else title)
    axes.set_xlabel("update")
    axes.set_ylim(bottom=0)
    if len(curves) > 1:
        axes.legend([{"train": "training", "valid": "validation"}[name.split("/")[0]] for name in curves])


# (SNR in dB or None for clean, rate, [low, high])
NoisePoint = tuple[float | None, float, Sequence[float]]


def noise_figure(noise: str, lines: Mapping[str, Sequence[NoisePoint]]) -> Markup:
    """WER of each modality over the SNR of one kind of noise; clean stands at the right, and alone is a level line."""
    return _figure(f"WER over the signal-to-noise ratio, {noise}", _draw_noise, noise, lines)


def _draw_noise(axes: Axes, noise: str, lines: Mapping[str, Sequence[NoisePoint]]) -> None:
    ratios = sorted({snr for points in lines.values() for snr, _, _ in points if snr is not None})
    ticks = [*ratios, None]
    for (modality, points), style in zip(lines.items(), _STYLES, strict=False):
        if [snr for snr, _, _ in points] == [None]:  # video does not hear the noise
            axes.axhline(100 * points[0][1], **(style | {"marker": ""}), label=modality)
            continue
        points = sorted(points, key=lambda point: ticks.index(point[0]))
        x, y = [ticks.index(snr) for snr, _, _ in points], [100 * rate for _, rate, _ in points]
        reach = [[100 * max(0, rate - low) for _, rate, (low, _) in points],
                 [100 * max(0, high - rate) for _, rate, (_, high) in points]]  # fmt: skip
        axes.errorbar(x, y, yerr=reach, **style, elinewidth=0.8, capsize=2, label=modality)
    axes.set_title(f"WER, %: {noise}")
    axes.set_xticks(range(len(ticks)), [*(f"{snr:g}" for snr in ratios), "clean"])
    axes.set_xlabel("signal-to-noise ratio, dB")
    axes.set_ylim(bottom=0)
    axes.legend()


def _figure(label: str, draw: Callable[..., None], *arguments: Any) -> Markup:
    """What `draw(axes, *arguments)` draws, as an SVG element without a size of its own."""
    # Without a salt, ids differ from run to run; with the same one, figures share them.
    with matplotlib.rc_context(_SETTINGS | {"svg.hashsalt": label}):
        figure = Figure(figsize=(3.7, 2.5), layout="constrained")
        figure.patch.set_visible(False)
        axes = figure.add_subplot()
        axes.patch.set_visible(False)
        draw(axes, *arguments)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    # The page says how large it is, and in which font; names of groups would not be unique there.
    dropped = r'(?s)<metadata>.*?</metadata>|<style.*?</style>|font-family: [^;"]*;| id="[\w.]+_\d+"'
    svg = re.sub(dropped, "", text.getvalue())
    view, body = re.search(r"(?s)<svg [^>]*?viewBox=\"([^\"]*)\"[^>]*>(.*)", svg).groups()
    body = re.sub("|".join(_COLOURS), lambda match: _COLOURS[match[0]], body)
    return Markup(f'<svg viewBox="{view}" role="img" aria-label="{escape(label)}">{body}')
