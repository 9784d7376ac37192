"""Evaluation: decode shard folders with the best checkpoint, score them, write tables and a report."""

import csv
import dataclasses
import functools
import io
import zlib
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath
from flax import nnx
from tqdm import tqdm

from viavsp_jax import decode, distributed, programs, scoring, settings, sharding
from viavsp_jax.checkpoint import Checkpoints
from viavsp_jax.data import lengths, pipeline
from viavsp_jax.data.atomic import write_bytes
from viavsp_jax.data.ids import read_channels
from viavsp_jax.data.media import FRAME_RATE
from viavsp_jax.errors import InputError
from viavsp_jax.experiment import Experiment, load_experiment
from viavsp_jax.models.cache import Cache, moved
from viavsp_jax.report import results
from viavsp_jax.report.page import make_report, read_whole_report, write_report

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
        config = experiment.config.evaluate
        self.config = decode.load_decoding_config(config.decoding)
        self.mesh, self.structure = experiment.mesh, experiment.structure
        by_rows = functools.partial(sharding.by_rows, self.mesh)
        self.rules = decode.Search(self.config, experiment.prompt.end_id, by_rows)
        sharding.check_rows(self.mesh, config.rows, "config.evaluate.rows")
        # Every token but the last one is run through the model.
        self.rooms = cache_rooms(max(self.config.max_new_tokens - 1, 1))
        jit = functools.partial(programs.jit, self.mesh)
        self.prefill = jit(self._prefill)
        self.search = jit(self._search, donate_argnums=(2, 3))
        self.move = jit(self._move, static_argnums=1)
        self.result = jit(decode.result, out_shardings=sharding.replicated(self.mesh))

    def __call__(self, trainable: Tree, frozen: Tree, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """The hypotheses int32[B, M, G], best first, and their scores float32[B, M]; every process gets all of them."""
        state, cache = self.prefill(trainable, frozen, batch)
        while True:
            state, cache, progress = self.search(trainable, frozen, state, cache)
            running, live = jax.device_get(progress)
            if not running:
                return self.result(state)
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
    """Decodes one shard folder: id, reference, hypothesis, score, languages and seconds of each clip, by id.

    Every process reads all clips, decodes a part of each batch and returns all rows.
    """
    progress = functools.partial(tqdm, desc=name, unit="clip", disable=jax.process_index() > 0)
    rows = []
    source = progress(pipeline.evaluation_records(experiment.config, name))
    for records, batch in pipeline.decoding_batches(experiment.config, experiment.prompt, source):
        batch = sharding.put_whole_batch(experiment.mesh, fill_up(batch, records))
        tokens, scores = jax.device_get(decode_batch(batch))
        for record, ids, score in zip(records, tokens[:, 0], scores[:, 0], strict=False):
            rows.append({
                "id": record["id"],
                "reference": scoring.normalize(record["transcript"]),
                "hypothesis": scoring.normalize(experiment.prompt.text(np.asarray(ids).tolist())),
                "score": round(float(score), 4),
                "source_language": record["source_language"],
                "target_language": record["target_language"],
                "seconds": int(record["cluster_counts"].sum()) / FRAME_RATE,
            })  # fmt: skip
    return sorted(rows, key=lambda row: row["id"])


def write_table(path: epath.PathLike, rows: list[dict[str, str | float]]) -> None:
    """Writes rows of equal keys as tab-separated values with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode())


@distributed.others_alive()
def evaluate(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> dict[str, dict[str, Any]]:
    """Decodes every folder of `config.evaluate.names` with the best checkpoint of `workdir`.

    After each folder writes `hypotheses/<key>.tsv`, `report.json` and `report.html` there (see viavsp_jax/report/), in
    which earlier results of other folders and splits stay. At the end prints the scores as a table. Where several
    processes share the work, the first one writes and prints.

    Returns the scores by name, the same to every process.
    """
    settings.check(config)
    channels = read_channels(config.evaluate.mapping)
    workdir, is_first, names = epath.Path(workdir), jax.process_index() == 0, config.evaluate.names
    report = read_whole_report(workdir)
    experiment = load_experiment(config)
    if set(names) & set(results.RESERVED):
        raise InputError(f"config.evaluate.names is {tuple(names)}, expected names of shard folders")
    for name in names:
        lengths.check_languages(config, experiment.prompt, name)
    decoder = Decoder(experiment)
    checkpoints = Checkpoints(workdir)
    step = checkpoints.best_step()
    checkpoints.check_fits(step, experiment.fits)
    about = {
        "checkpoint": step,
        "weights": checkpoints.weights_sum(step),
        "split": config.evaluate.split,
        "dtype": config.dtype,
        "decoding": dataclasses.asdict(decoder.config),
    }
    # Every process asks: Orbax lets them wait for each other.
    changed = settings.changes(checkpoints.restore_config(step), config, settings.OF_THE_MODEL)
    trainable = checkpoints.restore_trainable(step, experiment.trainable)
    frozen = experiment.load_frozen() | checkpoints.restore_batch_stats(step, experiment.batch_stats)
    if is_first:
        print(f"decoding with the checkpoint of update {step}")
        for name, before, now in changed:
            print(f"since then config.{name} was changed from {before} to {now}")
        (workdir / "hypotheses").mkdir(parents=True, exist_ok=True)
        if report:
            results.move_old_tables(workdir, report)
    decode_batch = functools.partial(decoder, trainable, frozen)
    scores = {}
    for name in names:
        rows = decode_folder(experiment, decode_batch, name)
        new, key = make_report(about, {name: rows}, channels), results.key_of(name, about)
        report, scores[name] = results.joined(report, new) if report else new, new[key]
        if is_first:
            write_table(results.table_path(workdir, key), rows)
            write_report(workdir, report)
    if is_first:
        print(score_table(scores))
    return scores


def score_table(scores: dict[str, dict[str, Any]]) -> str:
    """Scores by shard folder for the eye: rates in percent, with 95 % intervals; BLEU where there is any."""
    names = ["wer", "cer", "mean_wer", "mean_cer"] + ["bleu"] * any("bleu" in row for row in scores.values())
    heads = ["", "clips", "WER %", "CER %", "mean WER %", "mean CER %", "BLEU"]
    lines = [heads] + [[name, str(row["clips"]), *(_cell(row, x) for x in names)] for name, row in scores.items()]
    widths = [max(map(len, scores)), 7, 21, 21, 12, 12, 8]
    return "\n".join(
        f"{line[0]:<{widths[0]}}" + "".join(map("{:>{}}".format, line[1:], widths[1 : len(names) + 2]))
        for line in lines
    )


def _cell(scores: dict[str, Any], name: str) -> str:
    if name not in scores:
        return "-"
    percent = 1 if name == "bleu" else 100
    text = f"{percent * scores[name]:.2f}"
    if name not in ("wer", "cer"):
        return text
    low, high = (percent * end for end in scores[f"{name}_interval"])
    return f"{text} ({low:.1f}-{high:.1f})"
