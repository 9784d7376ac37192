"""Draws what a soak saw, from its rounds.jsonl: python -m tests.stress.soak_figure runs/soak/rounds.jsonl soak.svg"""

import json
import pathlib
import sys
from itertools import accumulate

from matplotlib.figure import Figure

from viavsp_jax.runtime.errors import reported_to_user

_KILLS = {"start": "at the start", "work": "at work", "save": "in a save", "notice": "SIGTERM",
          "evaluation": "in an evaluation", "export": "in an export"}  # fmt: skip


def draw(rounds: pathlib.Path, output: pathlib.Path) -> None:
    """Memory of the process that lives through the soak, and kills so far, over time."""
    lines = [json.loads(line) for line in rounds.read_text(encoding="utf-8").splitlines()]
    minutes = [line["minutes"] for line in lines]
    figure = Figure(figsize=(9, 3), layout="constrained")
    memory, kills = figure.subplots(1, 2)
    memory.plot(minutes, [line["size"]["rss_mb"] for line in lines], ".-", color="tab:blue")
    memory.margins(y=0.2)
    memory.set(title="memory of the process that stays (MB)", ylim=(0, None))
    counts = {name: list(accumulate(line["kills"].get(kind, 0) for line in lines)) for kind, name in _KILLS.items()}
    counts = {f"{name}: {each[-1]}": each for name, each in counts.items() if each[-1]}
    kills.stackplot(minutes, counts.values(), labels=counts)
    kills.set(title="kills of other processes so far")
    kills.legend(loc="upper left", reverse=True, frameon=False)
    for axes in (memory, kills):
        axes.set(xlabel="minutes", xlim=(0, None))
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(output)


if __name__ == "__main__":
    with reported_to_user():
        draw(*map(pathlib.Path, sys.argv[1:]))
