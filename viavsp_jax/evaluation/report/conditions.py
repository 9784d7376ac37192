"""What the clips of a set are like, as its name tells: what is heard and seen, which noise, what is lost of the video.

av_clean                     audio_babble_0db             eight people talk at 0 dB
av_babble2_0db               two do                       av_snr_-5_interferer_1: one, in test sets of ViCocktail
av_lost25, av_babble_0db_lost50held                       see viavsp_jax/data/lost.py
av_clean_pool3, av_lost25_max2                            see viavsp_jax/data/compression.py
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from viavsp_jax.data import compression
from viavsp_jax.data.examples import MODALITIES
from viavsp_jax.data.ids import id_text
from viavsp_jax.data.lost import split_name
from viavsp_jax.data.noise import BABBLE, NUM_TALKERS

INTERFERERS = "interferers"  # the noise of sets that came with their corpus
# Word error rates on the clean test set of ViCocktail, as its authors tell (AV-HuBERT + CTC/attention).
THEIRS = {"av": 0.094, "audio": 0.136}
THEIR_SOURCE = "nguyenvulebinh/AVSRCocktail"

_MODALITY, _NUMBER = rf"(?P<modality>{'|'.join(MODALITIES)})", r"\d+(?:\.\d+)?"
_NAME = re.compile(rf"{_MODALITY}_(?:(?P<noise>.+)_(?P<snr_db>-?{_NUMBER})db|clean)")
_OF_CORPUS = re.compile(rf"{_MODALITY}_snr_(?P<snr_db>[-n]?{_NUMBER})_interferer_(?P<interferers>\d+)")


def condition(name: str) -> dict[str, Any]:
    """`modality`, `noise` (None: clean) and `snr_db` by the name of a set; nothing for names of other kinds.

    Where the name tells them: `interferers`, how many people talk, `lost_percent` of the frames with `lost_policy`, and
    `compression`.
    """
    rest, way = compression.split_name(id_text(name))
    rest, lost = split_name(rest)
    if match := _OF_CORPUS.fullmatch(rest):
        snr_db, interferers = float(match["snr_db"].replace("n", "-")), int(match["interferers"])
        found = {"modality": match["modality"], "noise": INTERFERERS, "snr_db": snr_db, "interferers": interferers}
    elif match := _NAME.fullmatch(rest):
        found = match.groupdict() | {"snr_db": float(match["snr_db"]) if match["snr_db"] else None}
        if few := re.fullmatch(rf"{BABBLE}(\d+)", match["noise"] or ""):
            found |= {"noise": BABBLE, "interferers": int(few[1])}
    else:
        return {}
    found |= {"lost_percent": lost.percent, "lost_policy": lost.policy} if lost else {}
    return found | ({"compression": str(way)} if way else {})


class Condition(NamedTuple):
    """Of some sets that differ in their modality alone."""

    noise: str | None
    interferers: int | None  # None: as many as is usual for the noise
    snr_db: float | None
    lost_percent: float
    lost_policy: str
    compression: str = ""  # that the name tells

    @property
    def talkers(self) -> int | None:
        """People who talk in the noise, if that is what it is."""
        return NUM_TALKERS if self.noise == BABBLE and self.interferers is None else self.interferers

    @property
    def seen(self) -> "Condition":
        """The same with nothing lost."""
        return self._replace(lost_percent=0, lost_policy="")


CLEAN = Condition(None, None, None, 0, "")


def sets_of(report: Mapping[str, Any]) -> dict[Condition, dict[str, str]]:
    """Names of sets by their condition, then by modality; clean first, then by noise from high SNR to low.

    Of those whose names tell it and whose clips are recognised.
    """
    found: dict[Condition, dict[str, str]] = {}
    for name, part in report["analysis"].items():
        if (known := part["condition"]) and "wer" in report[name]:
            lost = known.get("lost_percent", 0), known.get("lost_policy", "")
            way = known.get("compression", "")
            one = Condition(known["noise"], known.get("interferers"), known["snr_db"], *lost, way)
            found.setdefault(one, {})[known["modality"]] = name

    def order(one: Condition) -> tuple:
        lost = one.lost_percent, one.lost_policy == "held"
        return one.noise or "", one.talkers or 0, -(one.snr_db or 0.0), *lost, one.compression

    return {one: found[one] for one in sorted(found, key=order)}


class Point(NamedTuple):
    """A set among those that differ from it in their compression alone."""

    name: str
    positions: float  # a second, of the language model
    scores: Mapping[str, Any]


def by_positions(
    report: Mapping[str, Any], sets: Mapping[Condition, Mapping[str, str]]
) -> dict[Condition, dict[str, list[Point]]]:
    """Of `sets_of`, those that differ in their compression alone, from few positions a second to many.

    By what else tells them apart: condition and modality. They are at least two, of which it is known how many
    positions they have.
    """
    groups: dict[Condition, dict[str, list[Point]]] = {}
    for one, names in sets.items():
        for modality, name in names.items():
            if (rate := report["analysis"][name].get("positions_per_second")) is not None:
                group = groups.setdefault(one._replace(compression=""), {}).setdefault(modality, [])
                group.append(Point(name, rate, report[name]))
    several = {
        one: {modality: sorted(points, key=lambda point: point.positions) for modality, points in group.items()
              if len(points) > 1}
        for one, group in groups.items()
    }  # fmt: skip
    return {one: group for one, group in several.items() if group}


def theirs_of(report: Mapping[str, Any], sets: Mapping[Condition, Mapping[str, str]]) -> dict[str, float]:
    """What others have reached on the clean set, by modality; nothing unless the sets are those of their corpus."""
    if report["split"] != "test" or all(one.noise != INTERFERERS for one in sets):
        return {}
    return {modality: wer for modality, wer in THEIRS.items() if modality in sets.get(CLEAN, {})}
