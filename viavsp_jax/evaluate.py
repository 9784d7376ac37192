"""Evaluation: decode shard folders with a checkpoint, score them, write tables and a report."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath
from tqdm import tqdm

from viavsp_jax import settings, sharding
from viavsp_jax.checkpoint import Checkpoints
from viavsp_jax.data import lengths, pipeline, sources
from viavsp_jax.data.compression import CLUSTERS
from viavsp_jax.data.examples import MODALITIES
from viavsp_jax.data.features import FRAME_RATE
from viavsp_jax.data.ids import read_channels
from viavsp_jax.data.settings import DataSettings
from viavsp_jax.data.units import read as read_units
from viavsp_jax.decoding import frames
from viavsp_jax.decoding.decoder import Decoder, fill_up
from viavsp_jax.evaluation import scoring
from viavsp_jax.evaluation.report import results
from viavsp_jax.evaluation.report.page import check_reports, make_report, write_report
from viavsp_jax.experiment import Experiment, load_experiment
from viavsp_jax.run_settings import read_settings
from viavsp_jax.runtime import distributed
from viavsp_jax.runtime.errors import InputError
from viavsp_jax.runtime.tables import aligned, write_table

Batch = dict[str, jax.Array]
Tree = dict[str, Any]


def decode_folder(
    experiment: Experiment,
    decode_batch: Callable[[Batch], tuple[jax.Array, jax.Array]],
    name: str,
    hear: Callable[[Batch, list[dict]], list[str]] | None = None,
) -> list[dict[str, str | float]]:
    """Decodes one set: id, reference, hypothesis, score, languages, seconds and positions of each clip, by id.

    `hear` gives what the CTC head makes of each record of a batch, which is added as `ctc`.

    Every process reads all clips, decodes a part of each batch and returns all rows.
    """
    progress = functools.partial(tqdm, desc=name, unit="clip", disable=jax.process_index() > 0)
    rows = []
    data, c = experiment.settings.data_to_decode, experiment.settings.evaluation
    source = progress(pipeline.evaluation_records(data, name, c.split))
    for records, batch in pipeline.decoding_batches(data, experiment.prompt, source, c.rows, c.bucket):
        batch = sharding.put_whole_batch(experiment.mesh, fill_up(batch, records))
        tokens, scores = jax.device_get(decode_batch(batch))
        heard = [{"ctc": scoring.normalize(text)} for text in hear(batch, records)] if hear else [{}] * len(records)
        for record, ids, score, more in zip(records, tokens[:, 0], scores[:, 0], heard, strict=False):
            rows.append({
                "id": record["id"],
                "reference": scoring.normalize(record["transcript"]),
                "hypothesis": scoring.normalize(experiment.prompt.text(np.asarray(ids).tolist())),
                "score": round(float(score), 4),
                "source_language": record["source_language"],
                "target_language": record["target_language"],
                "seconds": int(record["cluster_counts"].sum()) / FRAME_RATE,
                "positions": len(record["cluster_counts"]),
                **more,
            })  # fmt: skip
    return sorted(rows, key=lambda row: row["id"])


@distributed.others_alive()
def evaluate(
    config: ml_collections.ConfigDict, workdir: epath.PathLike, which: str = "best"
) -> dict[str, dict[str, Any]]:
    """Decodes every folder of `config.evaluate.names` with a checkpoint of `workdir`: `best`, `latest` or a number.

    After each folder writes its table and the reports (see viavsp_jax/evaluation/report/results.py): other evaluations,
    and other folders of this one, stay. At the end prints the scores as a table. Where several processes share the
    work, the first one writes and prints.

    Returns the scores by name, the same to every process.
    """
    c = read_settings(config).evaluation
    channels, names = read_channels(c.mapping), c.names
    workdir, is_first = epath.Path(workdir), jax.process_index() == 0
    check_reports(workdir)
    experiment = load_experiment(config)
    if set(names) & set(results.RESERVED):
        raise InputError(f"config.evaluate.names is {tuple(names)}, expected names of shard folders")
    data = experiment.settings.data_to_decode
    _check_names(data, names)
    for name in names:
        lengths.check_languages(data, experiment.prompt, name, c.split)
    sharding.check_rows(experiment.mesh, c.rows, "config.evaluate.rows")
    decoder = Decoder(experiment.mesh, experiment.structure, c.decoding, experiment.prompt.end_ids)
    checkpoints = Checkpoints(workdir)
    step = checkpoints.choose(which)
    checkpoints.check_fits(step, experiment.fits)
    about = {
        "checkpoint": step,
        "weights": checkpoints.weights_sum(step),
        "split": c.split,
        "dtype": experiment.settings.dtype,
        "decoding": dataclasses.asdict(c.decoding),
    }
    if (quantization := experiment.settings.llm.quantization) != "none":  # else as in reports of earlier versions
        about["quantization"] = quantization
    if c.compression != CLUSTERS:
        about["compression"] = c.compression.suffix
    # Every process asks: Orbax lets them wait for each other.
    changed = settings.changes(checkpoints.restore_config(step), config, settings.OF_THE_MODEL)
    trainable = checkpoints.restore_trainable(step, experiment.trainable)
    frozen = experiment.load_frozen() | checkpoints.restore_batch_stats(step, experiment.batch_stats)
    if is_first:
        print(f"decoding with the checkpoint of update {step}")
        for name, before, now in changed:
            print(f"since then config.{name} was changed from {before} to {now}")
        results.take_over(workdir)
        folder = results.folder_of(workdir, about)
    decode_batch = functools.partial(decoder, trainable, frozen)
    hear = _hearing(experiment, workdir, trainable, frozen) if experiment.model.ctc else None
    scores = {}
    for name in names:
        rows = decode_folder(experiment, decode_batch, name, hear)
        report = make_report(about, {name: rows}, channels)
        scores[name] = report[results.key_of(name, about)]
        if is_first:
            write_table(folder / f"{name}.tsv", rows)
            write_report(workdir, report)
    if is_first:
        print(f"{score_table(scores)}\nhypotheses and report: {folder}")
    return scores


def _hearing(
    experiment: Experiment, workdir: epath.Path, trainable: Tree, frozen: Tree
) -> Callable[[Batch, list[dict]], list[str]]:
    """What the CTC head makes of the clips of a decoding batch, by the likeliest unit of each frame."""
    units, log_probs = read_units(workdir), frames.jit_log_probs(experiment.mesh, experiment.structure)

    def hear(batch: Batch, records: list[dict]) -> list[str]:
        found = jax.device_get(log_probs(trainable, frozen, batch))
        lengths = [record["cluster_counts"].sum() for record in records]
        return [units.words(frames.best_units(one[:length])) for one, length in zip(found, lengths, strict=False)]

    return hear


def _check_names(data: DataSettings, names: Sequence[str]) -> None:
    """Raises InputError that tells which folders there are, if there is none for one of these names."""
    kind = "media_" if data.of_clips else ""
    there = sorted(path.parent.name for path in epath.Path(data.path).glob(f"{kind}*/dataset_info.json"))
    if data.of_clips:
        there = [f"{modality}_{name.removeprefix(kind)}" for name in there for modality in MODALITIES]
    for name in names if data.path else ():  # else that is told where folders are opened
        if there and not sources.folder_of(data, name).exists():
            raise InputError(
                f"{sources.folder_of(data, name)}: no such folder, expected config.evaluate.names of {', '.join(there)}"
            )


def score_table(scores: dict[str, dict[str, Any]]) -> str:
    """Scores by shard folder for the eye: rates in percent, with 95 % intervals; BLEU where there is any."""
    names = ["wer", "cer", "mean_wer", "mean_cer"] + ["bleu"] * any("bleu" in row for row in scores.values())
    heads = ["", "clips", "WER %", "CER %", "mean WER %", "mean CER %", "BLEU"]
    rows = [[name, str(row["clips"]), *(_cell(row, x) for x in names)] for name, row in scores.items()]
    return aligned([heads[: len(names) + 2], *rows])


def _cell(scores: dict[str, Any], name: str) -> str:
    if name not in scores:
        return "-"
    percent = 1 if name == "bleu" else 100
    text = f"{percent * scores[name]:.2f}"
    if name not in ("wer", "cer"):
        return text
    low, high = (percent * end for end in scores[f"{name}_interval"])
    return f"{text} ({low:.1f}-{high:.1f})"
