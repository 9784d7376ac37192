"""Plots as SVG for the page: text stays text, and colours are the page's, so that they fit light and dark."""

import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from viavsp_jax.evaluation.report.confidence import Reliability
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
_WIDTH, _HEIGHT = 3.7, 2.5  # inches
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
# (place on the axis, rate, [low, high])
RatePoint = tuple[float, float, Sequence[float]]
# Modality, and how many people talk; None: that is the same in the whole figure, or nobody does.
Line = tuple[str, int | None]
_THEIRS = ", theirs"  # in labels


def noise_figure(
    noise: str, lines: Mapping[Line, Sequence[NoisePoint]], theirs: Mapping[str, float] = MappingProxyType({})
) -> Markup:
    """WER over the SNR of one kind of noise; clean stands at the right, and alone is a level line.

    A line for each modality, or for each number of people who talk in one: modalities have colours, numbers dashes and
    marks. `theirs` are rates that others have reached on clean speech, by modality.
    """
    return _figure(f"WER over the signal-to-noise ratio, {noise}", _draw_noise, noise, lines, theirs)


def _draw_noise(
    axes: Axes, noise: str, lines: Mapping[Line, Sequence[NoisePoint]], theirs: Mapping[str, float]
) -> None:
    ratios = sorted({snr for points in lines.values() for snr, _, _ in points if snr is not None})
    ticks, styles = [*ratios, None], _line_styles(lines)
    for line, points in lines.items():
        style = styles[line]
        if [snr for snr, _, _ in points] == [None]:  # video does not hear the noise
            axes.axhline(100 * points[0][1], **(style | {"marker": ""}))
            continue
        points = sorted(points, key=lambda point: ticks.index(point[0]))
        _draw_rates(axes, [(ticks.index(snr), rate, ends) for snr, rate, ends in points], style)
    colours = {modality: style["color"] for (modality, _), style in styles.items()}
    for modality, rate in theirs.items():
        style = {"color": colours[modality], "marker": "D", "markersize": 7, "markerfacecolor": "none"}
        axes.plot([len(ratios)], [100 * rate], **style, linestyle="", zorder=5, label=modality + _THEIRS)
    axes.set_title(f"WER, %: {noise}")
    axes.set_xticks(range(len(ticks)), [*(f"{snr:g}" for snr in ratios), "clean"])
    axes.set_xlabel("signal-to-noise ratio, dB")
    axes.set_ylim(bottom=0)
    if len(lines) + len(theirs) <= len(_STYLES):
        axes.legend()
        return
    # Inside, so many would hide the lines. A column for each number of talkers.
    drawn = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    ordered = sorted(lines, key=lambda line: line[1] or 0)
    labels = [*(styles[line]["label"] for line in ordered), *(label for label in drawn if label.endswith(_THEIRS))]
    axes.figure.set_figheight(_HEIGHT * 1.35)
    columns = max(1, len({number for _, number in lines if number})) + bool(theirs)
    axes.figure.legend(
        [drawn[label] for label in labels], labels, loc="outside lower center", ncols=columns, columnspacing=1
    )


def _draw_rates(axes: Axes, points: Iterable[RatePoint], style: Mapping[str, Any]) -> None:
    """A line through rates, with their intervals, in percent."""
    x, rates, ends = zip(*points, strict=True)
    reach = [[100 * max(0, rate - low) for rate, (low, _) in zip(rates, ends, strict=True)],
             [100 * max(0, high - rate) for rate, (_, high) in zip(rates, ends, strict=True)]]  # fmt: skip
    axes.errorbar(x, [100 * rate for rate in rates], yerr=reach, **style, elinewidth=0.8, capsize=2)


def compression_figure(condition: str, lines: Mapping[str, Sequence[RatePoint]]) -> Markup:
    """WER over the speech positions a second of sets of one condition, a line for each modality."""
    return _figure(f"WER over speech positions a second, {condition}", _draw_compression, condition, lines)


def _draw_compression(axes: Axes, condition: str, lines: Mapping[str, Sequence[RatePoint]]) -> None:
    for (modality, points), style in zip(lines.items(), _STYLES, strict=False):
        _draw_rates(axes, points, style | {"label": modality})
    axes.set_title(f"WER, %: {condition}")
    axes.set_xlabel("speech positions a second")
    axes.set_ylim(bottom=0)
    axes.legend()


def reliability_figure(reliability: Reliability) -> Markup:
    """How many words are right over how likely that was said to be, with the diagonal on which both are the same."""
    return _figure("Words that are right over their confidence", _draw_reliability, reliability)


def _draw_reliability(axes: Axes, found: Reliability) -> None:
    there = found.words > 0
    words = found.words[there]
    axes.plot([0, 100], [0, 100], color=_MUTED, linestyle=":", linewidth=1)
    told, right = 100 * found.confidence[there] / words, 100 * found.right[there] / words
    axes.plot(told, right, color=_SERIES[0])
    axes.scatter(told, right, s=15 + 150 * words / words.max(), color=_SERIES[0], alpha=0.6, linewidths=0)
    axes.set_title("Words that are right, %")
    axes.set_xlabel("confidence, %")
    axes.set_xlim(-3, 106)
    axes.set_ylim(-3, 106)


def _line_styles(lines: Iterable[Line]) -> dict[Line, dict[str, Any]]:
    """How each is drawn, and its label."""
    modalities = list(dict.fromkeys(modality for modality, _ in lines))
    numbers, found = sorted({number for _, number in lines if number is not None}), {}
    for modality, number in lines:
        style = _STYLES[modalities.index(modality)] | {"label": modality}
        if number is not None:
            talkers = f"{number} talker{'s' if number > 1 else ''}"
            marks = _STYLES[numbers.index(number) % len(_STYLES)]
            style = marks | {"color": style["color"], "label": f"{modality}, {talkers}"}
        found[modality, number] = style
    return found


def _figure(label: str, draw: Callable[..., None], *arguments: Any) -> Markup:
    """What `draw(axes, *arguments)` draws, as an SVG element without a size of its own."""
    # Without a salt, ids differ from run to run; with the same one, figures share them.
    with matplotlib.rc_context(_SETTINGS | {"svg.hashsalt": label}):
        figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
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
