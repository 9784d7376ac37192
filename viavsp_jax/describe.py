"""--mode=describe: the checkpoints of a work folder and what they were made by."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from viavsp_jax.checkpoint import Checkpoints
from viavsp_jax.runtime.atomic import write_bytes
from viavsp_jax.runtime.backends import start_devices
from viavsp_jax.runtime.run_info import flat


def describe(workdir: epath.PathLike, output: epath.PathLike | None = None) -> None:
    """Prints the checkpoints of a work folder and what the newest was made by; to `output` goes all of it, as JSON.

    Raises InputError if there is no checkpoint.
    """
    start_devices()
    checkpoints = Checkpoints(workdir)
    best, steps = checkpoints.best_step(), checkpoints.steps()
    found = [
        {
            "update": step,
            "accuracy": checkpoints.accuracy(step),
            "origin": checkpoints.restore_run_info(step),
            "fits": checkpoints.restore_fits(step),
            "config": checkpoints.restore_config(step),
        }
        for step in steps
    ]
    print(_table(found, best))
    newest = found[-1]
    for name, part in (("made by", "origin"), ("fits", "fits"), ("settings", "config")):
        part = newest[part]
        print(f"\nupdate {newest['update']}, {name}" if part else f"\nupdate {newest['update']}: {name} not recorded")
        lines = flat(part)
        width = max(map(len, lines), default=0)
        print("\n".join(f"  {key:<{width}}  {_shown(value)}" for key, value in lines.items()))
    if output:
        write_bytes(output, (json.dumps({"best": best, "checkpoints": found}, indent=2) + "\n").encode())


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "-"
    return "-" if value in (None, "") else str(value)


def _table(found: Sequence[Mapping[str, Any]], best: int) -> str:
    lines = [f"{'update':>9}  {'accuracy':>8}  saved"]
    for one in found:
        notes = ["best"] * (one["update"] == best) + ["newest"] * (one is found[-1])
        # A checkpoint that was saved in a hurry was not validated.
        accuracy = f"{one['accuracy']:.4f}" if one["accuracy"] else "-"
        saved = one["origin"].get("saved", "at an unknown time")
        lines.append(f"{one['update']:>9,}  {accuracy:>8}  {saved}  {', '.join(notes)}".rstrip())
    return "\n".join(lines)
