"""What can be seen of a training while it runs: a bar or lines, curves and decoded texts."""

import datetime
import itertools
import sys
import time
from collections.abc import Sequence

import jax
from etils import epath
from tqdm import tqdm

from viavsp_jax.aot import flops
from viavsp_jax.aot.peaks import peak_flops
from viavsp_jax.data.packing import Arrays
from viavsp_jax.experiment import Experiment
from viavsp_jax.losses import Metrics, summarize
from viavsp_jax.runtime.run_info import flat
from viavsp_jax.runtime.tensorboard import Writer
from viavsp_jax.runtime.throughput import Throughput
from viavsp_jax.samples import Decoded

_SHOWN = 2  # decoded clips that are shown as lines


def say(text: str) -> None:
    """One line for the user, from one process, beside the progress bar."""
    if jax.process_index() == 0:
        tqdm.write(text, file=sys.stderr)


class Monitor:
    """Of one run: a bar where a person watches, a line for every log elsewhere; and TensorBoard files."""

    def __init__(self, experiment: Experiment, workdir: epath.PathLike, throughput: Throughput, config: dict):
        self._experiment, self._throughput = experiment, throughput
        self._writer = Writer(workdir, flat(config), experiment.settings.training.trackers)
        self._watched, self._last = sys.stderr.isatty(), experiment.settings.training.updates

    def start(self, step: int) -> None:
        """Training goes on behind update `step`."""
        self._start, self._begun = step, time.monotonic()
        if not self._watched:
            say(f"training from update {step + 1} to {self._last}")
        silent = jax.process_index() > 0 or not self._watched
        self._bar = tqdm(total=self._last, initial=step, unit="update", desc="train", mininterval=0.5, disable=silent)

    def updated(self) -> None:
        """One more update was handed to the devices."""
        self._bar.update()

    def log(self, step: int, rate: float, metrics: Sequence[Metrics], batch: Arrays) -> dict[str, float]:
        """Writes what the updates since the last log gave, the newest of which is `step`; returns the mean metrics.

        `rate` is the learning rate of that update. Work is reckoned by the rows of this process's newest `batch`.
        """
        scores, utterances = summarize(metrics), sum(float(one.loss.count) for one in metrics)
        share = self._experiment.settings.data.rows / len(batch["tokens"]) * len(metrics)
        texts = list(itertools.chain.from_iterable(map(flops.texts_of, *(batch[name] for name in flops.OF_TEXTS))))
        work = share * flops.useful_in_training(self._experiment.model.llama, texts)
        speed = self._throughput.interval(
            clips=utterances, positions=share * sum(len(positions) for positions, _ in texts), flops=work
        )
        seconds, devices = self._throughput.seconds(), self._experiment.mesh.devices.flat
        if peak := peak_flops(devices[0]):
            speed["mfu"] = speed["flops_per_second"] / peak / len(devices)
        memory = jax.local_devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in memory:
            speed["peak_memory_gb"] = memory["peak_bytes_in_use"] / 1e9
        self._writer.write(step, {
            **{f"train/{name}": value for name, value in scores.items()},
            "train/learning_rate": rate,
            "train/utterances_per_update": utterances / len(metrics),
            **{f"throughput/{name}": value for name, value in speed.items()},
            **{f"wall_time/{name}": value / sum(seconds.values()) for name, value in seconds.items()},
        })  # fmt: skip
        self._bar.set_postfix(loss=f"{scores['loss']:.3f}", accuracy=f"{scores['accuracy']:.3f}", refresh=False)
        if not self._watched:
            say(
                f"update {step} of {self._last}: loss {scores['loss']:.4f}, accuracy {scores['accuracy']:.4f}, "
                f"{speed['clips_per_second']:,.1f} clips/s, {self._left(step)} left"
            )
        return scores

    def _left(self, step: int) -> datetime.timedelta:
        """By the pace since the start, validation and checkpoints included."""
        pace = (time.monotonic() - self._begun) / max(1, step - self._start)
        return datetime.timedelta(seconds=round(pace * (self._last - step)))

    def validated(self, step: int, scores: dict[str, float], decoded: Decoded | None) -> None:
        """Writes the scores of the validation split, and what the model wrote."""
        texts, line = {}, f"validation loss {scores['loss']:.4f}, token accuracy {scores['accuracy']:.4f}"
        if decoded:
            cells = [[text.replace("|", "\\|") for text in row] for row in decoded.texts]
            lines = ["| clip | said | decoded |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in cells)]
            texts["valid/decoded"] = "\n".join(lines)
            line += f", WER of {len(decoded.texts)} clips {100 * decoded.wer:.1f} %"
        self._writer.write(step, {f"valid/{name}": value for name, value in scores.items()}, texts)
        say(f"update {step}: {line}")
        for _, reference, hypothesis in decoded.texts[:_SHOWN] if decoded else ():
            say(f"  said:    {reference}\n  decoded: {hypothesis}")

    def stop(self) -> None:
        """Ends the bar."""
        self._bar.close()

    def close(self) -> None:
        """Closes the files."""
        self._writer.close()
