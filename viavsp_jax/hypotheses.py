"""A checkpoint that is ready to decode shard folders, for all that judge it by its hypotheses.

Letters: T frames, V units of the CTC head with the blank.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath
from tqdm import tqdm

from viavsp_jax import settings, sharding
from viavsp_jax.checkpoint import Checkpoints
from viavsp_jax.compatibility import check_fits
from viavsp_jax.data import lengths, pipeline, sources
from viavsp_jax.data.compression import CLUSTERS
from viavsp_jax.data.examples import MODALITIES
from viavsp_jax.data.settings import DataSettings
from viavsp_jax.data.vocabulary import read as read_units
from viavsp_jax.decoding import calibration
from viavsp_jax.decoding.calibration import Calibration
from viavsp_jax.decoding.decoder import Decoder, fill_up
from viavsp_jax.decoding.frames import Hearing, jit_log_probs, nbest_of
from viavsp_jax.decoding.nbest import NBest
from viavsp_jax.evaluation.report import results
from viavsp_jax.evaluation.vietnamese import normalize
from viavsp_jax.experiment import Experiment, load_experiment
from viavsp_jax.runtime.errors import InputError

Batch = dict[str, jax.Array]
# decoding batch → hypotheses int32[B, M, G], best first, and their scores float32[B, M]
DecodeBatch = Callable[[Batch], tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True)
class ReadyCheckpoint:
    """Of a work folder."""

    experiment: Experiment
    decode_batch: DecodeBatch
    hearing: Hearing | None  # None without a CTC head
    step: int
    about: dict[str, Any]  # what results are kept with, see evaluation/report/results.py


def load_checkpoint(
    config: ml_collections.ConfigDict, workdir: epath.PathLike, which: str, split: str, calibrated: bool = True
) -> ReadyCheckpoint:
    """Loads `best`, `latest` or that of a number, to decode `config.evaluate.names` of a split.

    Without `calibrated`, how it was calibrated is not read. The first process tells the step, the settings that have
    changed and the weight of the CTC head. Raises InputError before weights are read if folders are missing or hold
    what cannot be decoded, or a file of the CTC head is damaged.
    """
    workdir, experiment = epath.Path(workdir), load_experiment(config)
    c, data = experiment.settings.evaluation, experiment.settings.data_to_decode
    if set(c.names) & set(results.RESERVED):
        raise InputError(f"config.evaluate.names is {tuple(c.names)}, expected names of shard folders")
    _check_names(data, c.names)
    for name in c.names:
        lengths.check_languages(data, experiment.prompt, name, split)
    sharding.check_rows(experiment.mesh, c.rows, "config.evaluate.rows")
    decoder = Decoder(experiment.mesh, experiment.structure, c.decoding, experiment.prompt.end_ids)
    checkpoints = Checkpoints(workdir)
    step = checkpoints.choose(which)
    check_fits(checkpoints, step, experiment.fits)
    about = {
        "checkpoint": step,
        "weights": checkpoints.weights_sum(step),
        "split": split,
        "dtype": experiment.settings.dtype,
        "decoding": dataclasses.asdict(c.decoding),
    }
    if (quantization := experiment.settings.llm.quantization) != "none":  # else as in reports of earlier versions
        about["quantization"] = quantization
    if c.compression != CLUSTERS:
        about["compression"] = c.compression.suffix
    known, units = Calibration(), None
    if experiment.model.ctc:
        units = read_units(workdir, checkpoints.restore_units(step))
        if calibrated:
            known = calibration.read(workdir, step, about["weights"]).with_weight(c.ctc_weight)
    # Every process asks: Orbax lets them wait for each other.
    changed = settings.changes(checkpoints.restore_config(step), config, settings.OF_THE_MODEL)
    trainable = checkpoints.restore_trainable(step, experiment.trainable)
    frozen = experiment.load_frozen() | checkpoints.restore_batch_stats(step, experiment.batch_stats)
    hearing = None
    if units:
        log_probs = functools.partial(jit_log_probs(experiment.mesh, experiment.structure), trainable, frozen)
        hearing = Hearing(log_probs, units, known)
    if known.ctc_weight and c.decoding.num_beams > 1:
        about["ctc_weight"] = known.ctc_weight
    if known.confidence:  # of another calibration, confidences are others
        about["confidence"] = dataclasses.asdict(known.confidence)
    if jax.process_index() == 0:
        print(f"decoding with the checkpoint of update {step}")
        for name, before, now in changed:
            print(f"since then config.{name} was changed from {before} to {now}")
        if "ctc_weight" in about:
            print(f"the CTC head ranks hypotheses with a weight of {about['ctc_weight']:g}")
    return ReadyCheckpoint(experiment, functools.partial(decoder, trainable, frozen), hearing, step, about)


def decoded(
    experiment: Experiment, decode_batch: DecodeBatch, name: str, split: str, hearing: Hearing | None
) -> Iterator[tuple[dict[str, Any], NBest, np.ndarray | None]]:
    """Each record of a set, its hypotheses as the search ranks them, and what the CTC head hears: float32[T, V].

    Texts are normalized. Every process reads all clips, decodes a part of each batch and gets all of it.
    """
    progress = functools.partial(tqdm, desc=name, unit="clip", disable=jax.process_index() > 0)
    data, c = experiment.settings.data_to_decode, experiment.settings.evaluation
    prompt, source = experiment.prompt, progress(pipeline.evaluation_records(data, name, split))
    for records, batch in pipeline.decoding_batches(data, prompt, source, c.rows, c.bucket):
        batch = sharding.put_whole_batch(experiment.mesh, fill_up(batch, records))
        tokens, scores = jax.device_get(decode_batch(batch))
        heard = hearing(batch, records) if hearing else [None] * len(records)
        for record, ids, values, frames in zip(records, tokens, scores, heard, strict=False):
            texts = [normalize(prompt.text(one.tolist())) for one in np.asarray(ids)]
            yield record, nbest_of(texts, ids, values, c.decoding, prompt.end_ids), frames


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
