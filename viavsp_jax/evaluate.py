"""Evaluation: decode shard folders with the best checkpoint, score them, write tables and a report."""

import csv
import functools
import io
import json
import zlib
from collections.abc import Callable
from typing import Any

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
from viavsp_jax.models.cache import Cache, moved

Batch = dict[str, jax.Array]
Tree = dict[str, Any]

# Tokens of each beam that the cache has room for at first.
FIRST_ROOM = 16


class Decoder:
    """Decodes batches by a handful of programs, for any number of tokens.

    `prefill` is compiled for every size of prompts, `search` for each of these and size of the cache. The cache starts
    with room for few tokens. When that is full, the places that no beam sees any more are given back, and only where
    they are fewer than half of it, it grows: memory and the time of a step follow what beams remember, not the longest
    text that is allowed.

    A batch is that of the pipeline and `stream` uint32[B], which tells the rows apart when tokens are sampled.
    """

    def __init__(self, experiment: Experiment):
        """Raises InputError for wrong settings in `config.evaluate`."""
        settings = experiment.config.evaluate
        self.config = decode.load_decoding_config(settings.decoding)
        self.mesh, self.structure = experiment.mesh, experiment.structure
        by_rows = functools.partial(sharding.by_rows, self.mesh)
        self.rules = decode.Search(self.config, experiment.prompt.end_id, by_rows)
        sharding.check_rows(self.mesh, settings.rows, "config.evaluate.rows")
        # Every token but the last one is run through the model.
        self.rooms = cache_rooms(max(self.config.max_new_tokens - 1, 1))
        self.prefill = jax.jit(self._prefill)
        self.search = jax.jit(self._search, donate_argnums=(2, 3))
        self.move = jax.jit(self._move, static_argnums=1)
        self.best = jax.jit(self._best, out_shardings=sharding.replicated(self.mesh))

    def __call__(self, trainable: Tree, frozen: Tree, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """The best hypothesis int32[B, G] and its score float32[B]; every process gets all of them."""
        state, cache = self.prefill(trainable, frozen, batch)
        while True:
            state, cache, progress = self.search(trainable, frozen, state, cache)
            running, live = jax.device_get(progress)
            if not running:
                return self.best(state)
            cache = self.move(cache, self.room_for(int(live)))

    def room_for(self, live: int) -> int:
        """The least room of which so many places leave half free; else the largest."""
        return next((room for room in self.rooms if 2 * live <= room * self.config.num_beams), self.rooms[-1])

    def largest(self, trainable: Tree, frozen: Tree, batch: Batch) -> tuple[decode.State, Cache]:
        """What `search` gets when beams have nothing in common and no row ends early; all as shapes with shardings."""
        state, cache = jax.eval_shape(self._prefill, trainable, frozen, batch)
        cache = jax.eval_shape(functools.partial(self._move, room=self.rooms[-1]), cache)
        return sharding.with_sharding((state, cache), self._shardings((state, cache)))

    def _prefill(self, trainable, frozen, batch):
        model = nnx.merge(self.structure, trainable, frozen)
        logits, cache = model.prefill(batch, self.rooms[0], self.config.num_beams)
        # Threefry draws alike whatever the batch holds besides; rbg does not.
        key = jax.random.key(self.config.seed, impl="threefry2x32")
        keys = jax.vmap(functools.partial(jax.random.fold_in, key))(batch["stream"])
        return self._placed((self.rules.start(logits, keys), cache))

    def _search(self, trainable, frozen, state, cache):
        """Until the search ends or the cache is full; also tells whether it ended, and the live places."""
        model = nnx.merge(self.structure, trainable, frozen)

        def extend(tokens, parents, cache):
            logits, cache = model.extend(tokens, parents, cache)
            # As the head's columns lie: gathered are so many logits, not the head.
            columns = sharding.heads(self.mesh, logits.shape[2])
            return jax.lax.with_sharding_constraint(logits, columns), cache

        state, cache = self.rules.run(extend, state, cache, state.step + cache.room)
        return *self._placed((state, cache)), self._placed((decode.running(state), cache.live))

    def _move(self, cache, room):
        return self._placed(moved(cache, room * self.config.num_beams))

    def _best(self, state):
        tokens, scores = decode.result(state)
        return tokens[:, 0], scores[:, 0]

    def _placed(self, tree):
        return jax.lax.with_sharding_constraint(tree, self._shardings(tree))

    def _shardings(self, tree):
        """Keys and values [N, B, G, C, K] by rows and heads, all else by rows, but for numbers."""

        def one(x):
            if x.ndim == 5:
                return sharding.cached(self.mesh, x.shape[2])
            return sharding.rows(self.mesh) if x.ndim else sharding.replicated(self.mesh)

        return jax.tree.map(one, tree)


def cache_rooms(limit: int) -> list[int]:
    """Sizes of a cache in tokens of each beam, doubled up to the limit."""
    rooms = [FIRST_ROOM]
    while rooms[-1] < limit:
        rooms.append(2 * rooms[-1])
    return [*rooms[:-1], limit]


def fill_up(batch: dict[str, np.ndarray], records: list[dict]) -> dict[str, np.ndarray]:
    """Empty rows repeat the last record, so as not to end later than all others; adds `stream`, from the ids."""
    rows = np.minimum(np.arange(len(batch["lengths"])), len(records) - 1)
    streams = np.array([zlib.crc32(record["id"].encode()) for record in records], np.uint32)
    return {name: value[rows] for name, value in (batch | {"stream": streams}).items()}


def decode_folder(
    experiment: Experiment, decode_batch: Callable[[Batch], tuple[jax.Array, jax.Array]], name: str
) -> list[dict[str, str | float]]:
    """Decodes one shard folder: a row of id, reference, hypothesis and score for each clip, by id.

    Every process reads all clips, decodes a part of each batch and returns all rows.
    """
    progress = functools.partial(tqdm, desc=name, unit="clip", disable=jax.process_index() > 0)
    rows = []
    for records, batch in pipeline.decoding_batches(experiment.config, experiment.prompt, name, progress):
        batch = sharding.put_whole_batch(experiment.mesh, fill_up(batch, records))
        tokens, scores = jax.device_get(decode_batch(batch))
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

    Writes `hypotheses/<name>.tsv` and `report.json` (scores by name) there, and prints the scores as a table. Where
    several processes share the work, the first one writes and prints.
    """
    experiment = load_experiment(config)
    decoder = Decoder(experiment)
    workdir, is_first = epath.Path(workdir), jax.process_index() == 0
    checkpoints = Checkpoints(workdir)
    step = checkpoints.best_step()
    checkpoints.check_fits(step, experiment.fits)
    trainable = checkpoints.restore_trainable(step, experiment.trainable)
    frozen = experiment.load_frozen() | checkpoints.restore_batch_stats(step, experiment.batch_stats)
    if is_first:
        print(f"decoding with the checkpoint of update {step}")
        (workdir / "hypotheses").mkdir(parents=True, exist_ok=True)
    decode_batch = functools.partial(decoder, trainable, frozen)
    scores = {}
    for name in config.evaluate.names:
        rows = decode_folder(experiment, decode_batch, name)
        scores[name] = scoring.score([row["reference"] for row in rows], [row["hypothesis"] for row in rows])
        if is_first:
            write_table(workdir / "hypotheses" / f"{name}.tsv", rows)
    if is_first:
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
