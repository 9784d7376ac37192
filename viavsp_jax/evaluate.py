"""Evaluation: decode shard folders with the best checkpoint, score them, write tables and a report."""

import csv
import functools
import io
import json

import jax
import ml_collections
import numpy as np
from etils import epath
from flax import nnx
from tqdm import tqdm

from viavsp_jax import decode, scoring, sharding
from viavsp_jax.checkpoint import Checkpoints
from viavsp_jax.data import pipeline
from viavsp_jax.experiment import Experiment, load_experiment


def make_decode_step(experiment: Experiment):
    """(trainable, frozen, batch) → tokens int32[B, G] and log-probabilities float32[B], jitted."""
    prompt, room = experiment.prompt, experiment.config.evaluate.max_new_tokens

    def decode_step(trainable, frozen, batch):
        model = nnx.merge(experiment.structure, trainable, frozen)
        logits, cache = model.prefill(batch, room)
        return decode.greedy(model.extend, logits, cache, max_new_tokens=room, end_id=prompt.end_id)

    return jax.jit(decode_step, out_shardings=sharding.replicated(experiment.mesh))


def decode_folder(experiment: Experiment, decode_step, name: str) -> list[dict[str, str | float]]:
    """Decodes one shard folder: a row of id, reference, hypothesis and log_prob for each clip, by id."""
    progress = functools.partial(tqdm, desc=name, unit="clip")
    rows = []
    for records, batch in pipeline.decoding_batches(experiment.config, experiment.prompt, name, progress):
        tokens, scores = jax.device_get(decode_step(sharding.put_batch(experiment.mesh, batch)))
        for record, ids, log_prob in zip(records, tokens, scores, strict=False):
            rows.append({
                "id": record["id"],
                "reference": scoring.normalize(record["transcript"]),
                "hypothesis": scoring.normalize(experiment.prompt.text(np.asarray(ids).tolist())),
                "log_prob": round(float(log_prob), 4),
            })  # fmt: skip
    return sorted(rows, key=lambda row: row["id"])


def write_table(path: epath.PathLike, rows: list[dict[str, str | float]]) -> None:
    """Writes rows of equal keys as tab-separated values with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    epath.Path(path).write_text(text.getvalue())


def evaluate(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> dict[str, dict[str, float]]:
    """Decodes every folder of `config.evaluate.names` with the best checkpoint of `workdir`.

    Writes `hypotheses/<name>.tsv` and `report.json` (scores by name) there, and prints the scores as a table.
    """
    experiment = load_experiment(config)
    workdir = epath.Path(workdir)
    checkpoints = Checkpoints(workdir)
    step = checkpoints.best_step()
    checkpoints.check_fits(step, experiment.fits)
    trainable = checkpoints.restore_trainable(step, experiment.trainable)
    print(f"decoding with the checkpoint of update {step}")
    decode_step = functools.partial(make_decode_step(experiment), trainable, experiment.load_frozen())
    (workdir / "hypotheses").mkdir(parents=True, exist_ok=True)
    scores = {}
    for name in config.evaluate.names:
        rows = decode_folder(experiment, decode_step, name)
        write_table(workdir / "hypotheses" / f"{name}.tsv", rows)
        scores[name] = scoring.score([row["reference"] for row in rows], [row["hypothesis"] for row in rows])
    report = {"checkpoint": step, "split": config.evaluate.split, **scores}
    (workdir / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    print(score_table(scores))
    return scores


def score_table(scores: dict[str, dict[str, float]]) -> str:
    """Scores by shard folder, in percent, for the eye."""
    lines = [f"{'':<20}{'clips':>7}{'WER %':>9}{'CER %':>9}{'mean WER %':>12}{'mean CER %':>12}"]
    for name, row in scores.items():
        rates = (
            f"{100 * row['wer']:9.2f}{100 * row['cer']:9.2f}{100 * row['mean_wer']:12.2f}{100 * row['mean_cer']:12.2f}"
        )
        lines.append(f"{name:<20}{row['clips']:>7}{rates}")
    return "\n".join(lines)
