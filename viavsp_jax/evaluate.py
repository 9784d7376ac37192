"""Evaluation: decode shard folders with the best checkpoint, score them, write tables and a report."""

import csv
import functools
import io
import json
import zlib

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
    """(trainable, frozen, batch) → the best hypothesis int32[B, G] and its score float32[B], jitted.

    The batch is that of the pipeline and `stream` uint32[B], which tells the rows apart when tokens are sampled.
    Raises InputError for wrong settings in `config.evaluate.decoding`.
    """
    config, end_id = decode.load_decoding_config(experiment.config.evaluate.decoding), experiment.prompt.end_id

    def decode_step(trainable, frozen, batch):
        model = nnx.merge(experiment.structure, trainable, frozen)
        logits, cache = model.prefill(batch, config.max_new_tokens, config.num_beams)
        # Threefry draws alike whatever the batch holds besides; rbg does not.
        key = jax.random.key(config.seed, impl="threefry2x32")
        keys = jax.vmap(functools.partial(jax.random.fold_in, key))(batch["stream"])
        tokens, scores = decode.decode(model.extend, logits, cache, config, end_id, keys)
        return tokens[:, 0], scores[:, 0]

    return jax.jit(decode_step, out_shardings=sharding.replicated(experiment.mesh))


def fill_up(batch: dict[str, np.ndarray], records: list[dict]) -> dict[str, np.ndarray]:
    """Empty rows repeat the last record, so as not to end later than all others; adds `stream`, from the ids."""
    rows = np.minimum(np.arange(len(batch["lengths"])), len(records) - 1)
    streams = np.array([zlib.crc32(record["id"].encode()) for record in records], np.uint32)
    return {name: value[rows] for name, value in (batch | {"stream": streams}).items()}


def decode_folder(experiment: Experiment, decode_step, name: str) -> list[dict[str, str | float]]:
    """Decodes one shard folder: a row of id, reference, hypothesis and score for each clip, by id."""
    progress = functools.partial(tqdm, desc=name, unit="clip")
    rows = []
    for records, batch in pipeline.decoding_batches(experiment.config, experiment.prompt, name, progress):
        batch = sharding.put_batch(experiment.mesh, fill_up(batch, records))
        tokens, scores = jax.device_get(decode_step(batch))
        for record, ids, score in zip(records, tokens, scores, strict=False):
            rows.append({
                "id": record["id"],
                "reference": scoring.normalize(record["transcript"]),
                "hypothesis": scoring.normalize(experiment.prompt.text(np.asarray(ids).tolist())),
                "score": round(float(score), 4),
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
