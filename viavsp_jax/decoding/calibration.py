"""What was found out about a checkpoint on its validation split, kept beside it: WORKDIR/calibration/00000400.json.

That is how much the CTC head counts among the hypotheses of a search, and how likely their words are right.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from viavsp_jax.decoding.nbest import Confidence, weight_of
from viavsp_jax.runtime.atomic import write_bytes
from viavsp_jax.runtime.errors import InputError

PLACE = "calibration"
AS_CALIBRATED = -1.0  # of config.evaluate.decoding.ctc_weight


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Of one checkpoint; as it is by default where it was not calibrated."""

    ctc_weight: float = 0.0
    confidence: Confidence | None = None

    def with_weight(self, setting: float) -> "Calibration":
        """The same with the weight of config.evaluate.decoding.ctc_weight, if it tells one."""
        return self if setting == AS_CALIBRATED else dataclasses.replace(self, ctc_weight=float(setting))


def path_of(workdir: epath.PathLike, step: int) -> epath.Path:
    """Where the calibration of a checkpoint is."""
    return epath.Path(workdir) / PLACE / f"{step:08}.json"


def write(workdir: epath.PathLike, step: int, found: Calibration, about: Mapping[str, Any]) -> None:
    """Keeps what was found; `about` tells how, and the sum of the weights that it is about."""
    text = json.dumps({**about, **dataclasses.asdict(found)}, indent=2, ensure_ascii=False)
    write_bytes(path_of(workdir, step), f"{text}\n".encode())


def read(workdir: epath.PathLike, step: int, weights: int | None) -> Calibration:
    """That of the checkpoint with these weights, by their sum; of others, or if there is none, the default.

    Raises InputError if the file is damaged.
    """
    path = path_of(workdir, step)
    if not path.exists():
        return Calibration()
    try:
        found = json.loads(path.read_bytes())
        if found["weights"] != weights:
            return Calibration()
        return Calibration(weight_of(found["ctc_weight"]), Confidence.of_json(found["confidence"]))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError, IsADirectoryError) as error:
        reason = " ".join(repr(error).split())[:300]
        raise InputError(
            f"{path}: no calibration ({reason}), expected one that --mode=calibrate wrote: move it away, or calibrate "
            "again"
        ) from error
