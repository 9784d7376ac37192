"""Frames of a clip in which the mouth is not seen: behind a hand, in a head that turns away, in a cut.

In training they are drawn by `config.data.augment.drop_frames`. Sets to evaluate on lose a share of their frames, which
their names tell: av_lost25, av_babble_0db_lost50held. Which ones they are follows from a clip's id.

Letters: T frames (25 a second), H, W height and width.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from viavsp_jax.data.masks import stretch
from viavsp_jax.data.noise import rng_for

# zeros: behind the extractor, as of a missing modality. held: the last picture stays, at first the first that is seen.
Policy = Literal["zeros", "held"]

_SPAN = 10, 50  # frames, least and most: 0.4 to 2 seconds
_NAME = re.compile(r"(?P<rest>(?:.*/)?(?:av|video)(?P<condition>_.+)?)_lost(?P<percent>\d+(?:\.\d+)?)(?P<held>held)?")


@dataclasses.dataclass(frozen=True)
class DropFrames:
    """How many spans a training clip loses, and how large they are; the fields of `config.data.augment.drop_frames`."""

    spans: int
    frames: int  # of one, at most

    def seen(self, frames: int, rng: np.random.Generator) -> np.ndarray:
        """bool[T], False where the mouth is not seen. Sizes are drawn from 0 on, places from all there are."""
        seen = np.ones(frames, bool)
        for _ in range(self.spans):
            seen[stretch(frames, self.frames, rng)] = False
        return seen


@dataclasses.dataclass(frozen=True)
class LostVideo:
    """How much of a split's clips is lost, and what is in its place."""

    percent: float  # of the frames of each clip; above 0, at most 100
    policy: Policy
    seed: int = 0

    @property
    def suffix(self) -> str:
        """Of names of sets."""
        return f"lost{self.percent:g}{'held' if self.policy == 'held' else ''}"

    def seen(self, clip_id: str, frames: int) -> np.ndarray:
        """bool[T], False in the share that is lost, at least one frame.

        It is lost in spans of 0.4 to 2 seconds, the last of them shorter; two may meet. They follow from the clip's id
        and the seed alone.
        """
        rng, sizes = rng_for(clip_id, self.seed), []
        left = lost = max(1, round(frames * self.percent / 100))
        while left:
            sizes.append(min(left, int(rng.integers(_SPAN[0], _SPAN[1] + 1))))
            left -= sizes[-1]
        # Each span goes anywhere between the frames that stay.
        places = rng.integers(frames - lost + 1, size=len(sizes))
        return np.insert(np.ones(frames - lost, bool), np.repeat(places, sizes), False)

    def lose(self, clip_id: str, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """uint8[T, H, W] → as many pictures, and bool[T] those that the encoder is to take for seen.

        Of a clip that is lost as a whole no picture can stay.
        """
        seen = self.seen(clip_id, len(frames))
        if self.policy == "zeros" or not seen.any():
            return frames, seen
        last = np.maximum.accumulate(np.where(seen, np.arange(len(frames)), seen.argmax()))
        return frames[last], np.ones(len(frames), bool)


def lost_share(share: float, policy: Policy, seed: int) -> LostVideo:
    """Of a share of the frames, from 0.01 to 1, as exactly as names tell it."""
    return LostVideo(float(f"{100 * share:g}"), policy, seed)


def is_in(training: Mapping[str, Any]) -> bool:
    """Whether models were trained with lost frames as zeros, by all settings of a training (configs/base.py)."""
    data = training["data"]
    sets = (split_name(name)[1] for name in data["train"])
    drawn = training["encoder"]["train"] and data["augment"].get("drop_frames", {}).get("spans", 0) > 0
    return bool(drawn) or any(one is not None and one.policy == "zeros" for one in sets)


def split_name(name: str) -> tuple[str, LostVideo | None]:
    """The set of which something is lost by the name of one, as av_clean by av_lost25, and what; None: nothing."""
    match = _NAME.fullmatch(name)
    if not match or not 0 < float(match["percent"]) <= 100:
        return name, None
    rest = match["rest"] if match["condition"] else f"{match['rest']}_clean"
    return rest, LostVideo(float(match["percent"]), "held" if match["held"] else "zeros")
