"""A handful of clips of the validation split that training decodes greedily, to show what it has learnt."""

import dataclasses
import itertools
from typing import Any

import jax
import numpy as np

from viavsp_jax import sharding
from viavsp_jax.data import packing, pipeline
from viavsp_jax.data.sources import LeftOut
from viavsp_jax.decoding.decoder import Decoder, fill_up
from viavsp_jax.decoding.search import DecodingConfig
from viavsp_jax.evaluation import scoring
from viavsp_jax.evaluation.vietnamese import normalize
from viavsp_jax.experiment import Experiment

Tree = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Decoded:
    """Texts of the clips, and the word error rate of all."""

    texts: list[tuple[str, str, str]]  # training set and id, reference, hypothesis
    wer: float


class Samples:
    """`config.samples.clips` clips, spread evenly over the validation splits of all training sets."""

    def __init__(self, experiment: Experiment, left_out: LeftOut):
        c, data, self._experiment = experiment.settings.samples, experiment.settings.data, experiment
        sets = enumerate(zip(data.train, _shares(c.clips, len(data.train)), strict=True))
        records = [one for place, (name, share) in sets for one in _spread(experiment, name, share, place, left_out)]
        # One size, so that one program does.
        rows = sharding.whole_rows(experiment.mesh, len(records))
        longest = max(
            max(len(prompt[name]) for name in ("frame_slot", "tokens"))
            for prompt in (packing.speech_prompt(record, experiment.prompt) for record in records)
        )
        bucket = experiment.settings.evaluation.bucket
        size = -(-longest // bucket) * bucket
        self._batches = list(pipeline.decoding_batches(data, experiment.prompt, records, rows, size))
        search = DecodingConfig(max_new_tokens=c.max_new_tokens, num_beams=1)
        self._decoder = Decoder(experiment.mesh, experiment.structure, search, experiment.prompt.end_ids)

    def decode(self, trainable: Tree, frozen: Tree) -> Decoded:
        """What these weights make of the clips; every process gets all of it."""
        texts, prompt = [], self._experiment.prompt
        for records, batch in self._batches:
            batch = sharding.put_whole_batch(self._experiment.mesh, fill_up(batch, records))
            tokens = jax.device_get(self._decoder(trainable, frozen, batch)[0])[:, 0]
            for record, ids in zip(records, tokens, strict=False):
                hypothesis = normalize(prompt.text(np.asarray(ids).tolist()))
                texts.append((f"{record['set']} {record['id']}", normalize(record["transcript"]), hypothesis))
        _, references, hypotheses = zip(*texts, strict=True)
        counts, _ = scoring.align(references, hypotheses)
        errors, words, _, _ = counts.errors().sum(0)
        return Decoded(texts, errors / words)


def _shares(clips: int, sets: int) -> list[int]:
    """How many of each set: as many of each as possible, more of the first ones."""
    return [clips // sets + (number < clips % sets) for number in range(sets)]


def _spread(experiment: Experiment, name: str, count: int, place: int, left_out: LeftOut) -> list[dict[str, Any]]:
    """So many records of a validation split at even distances, or all if it has no more, without those left out.

    Sets often have the same clips: the `place` of this one among them shifts where its records begin.
    """
    data = experiment.settings.data_to_decode
    records = pipeline.evaluation_records(data, name, "valid")
    ids = left_out.get((name, "valid"), ())
    step = max(1, len(records) // max(1, count))
    shift = place * step // len(data.train)
    # Where one is left out, its neighbours come in.
    order = (index % step for index in range(shift, shift + step))
    indices = itertools.chain.from_iterable(range(first, len(records), step) for first in order)
    found = (record | {"set": name} for record in (records[index] for index in indices) if record["id"] not in ids)
    return list(itertools.islice(found, count))
