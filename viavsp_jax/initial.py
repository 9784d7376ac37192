"""The weights that training begins with: new ones, or those of another training (`config.init_from`)."""

import contextlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError

from convert.avhubert import load_flax
from convert.names import check_names, check_shapes, tensors
from viavsp_jax.checkpoint import Checkpoints
from viavsp_jax.compatibility import check_fits
from viavsp_jax.data import vocabulary
from viavsp_jax.experiment import Experiment
from viavsp_jax.runtime.errors import InputError
from viavsp_jax.runtime.run_info import flat

Tree = dict[str, Any]
Read = Callable[[], tuple[Tree, Tree]]  # trainable weights, statistics


def initial_weights(experiment: Experiment) -> tuple[Tree, Tree]:
    """Trainable weights, and the statistics of the encoder's BatchNorm; both where `experiment` has them.

    From another training come adapters and projector, and its encoder where it trained one. An encoder that it did not
    train is the pre-trained one, and a CTC head of another size is new.

    Raises InputError if `config.init_from` is no work folder, checkpoint or export, or one of another model.
    """
    encoder, batch_stats = experiment.load_encoder()
    trainable = experiment.init_trainable() | encoder
    if not experiment.settings.training.init_from:
        return trainable, batch_stats
    found, found_stats = open_source(experiment)()
    return trainable | found, batch_stats | found_stats


def open_source(experiment: Experiment) -> Read:
    """What reads the weights of `config.init_from`, which fit. Raises InputError as `initial_weights` does."""
    source = experiment.settings.training.init_from
    path = epath.Path(source)
    if (path / "adapter").exists():
        return _exported(path, experiment)
    if (path / "checkpoints").exists():
        return _saved(path, "best", experiment)
    if path.parent.name == "checkpoints" and path.exists():
        return _saved(path.parent.parent, path.name, experiment)
    raise InputError(f"config.init_from is {source}, expected a work folder, one of its checkpoints or an export")


def _saved(workdir: epath.Path, which: str, experiment: Experiment) -> Read:
    """From a work folder: `best` or the number of a checkpoint."""
    checkpoints = Checkpoints(workdir)
    step = checkpoints.choose(which)
    saved = checkpoints.restore_fits(step)
    with_encoder = saved.get("config.encoder.train", False)
    _check_fits(experiment, with_encoder, workdir, lambda fits: check_fits(checkpoints, step, fits))
    known = {"encoder": with_encoder, "ctc": _has_head(experiment, saved, workdir)}
    wanted = {name: tree for name, tree in experiment.trainable.items() if known.get(name, True)}
    stats = experiment.batch_stats if with_encoder else {}
    checkpoints.close()

    def read():
        with contextlib.closing(Checkpoints(workdir)) as checkpoints:
            return checkpoints.restore_trainable(step, wanted), checkpoints.restore_batch_stats(step, stats)

    return read


def _has_head(experiment: Experiment, saved: Mapping[str, Any], workdir: epath.Path) -> bool:
    """Whether the CTC head of another training is of the same size and units."""
    own = {name: value for name, value in experiment.fits.items() if name.startswith("config.ctc.")}
    return experiment.model.ctc is not None and own.items() <= saved.items() and (workdir / vocabulary.FILE).exists()


def _check_fits(experiment: Experiment, with_encoder: bool, where: epath.Path, check: Any) -> None:
    """Of what weights fit, the model: what they are asked may be new, and so may an encoder that was not trained."""
    if with_encoder and experiment.model.encoder is None:
        raise InputError(
            f"config.init_from is {where}, whose encoder was trained too: expected config.encoder.train=true"
        )
    model = {
        name: value
        for name, value in experiment.fits.items()
        if not name.startswith(("config.prompt.", "config.llm.end_token", "tokenizer", "config.ctc."))
    }
    of_encoder = {name for name in model if name.startswith(("config.encoder.", "the encoder's"))}
    check({name: value for name, value in model.items() if with_encoder or name not in of_encoder})


def _exported(folder: epath.Path, experiment: Experiment) -> Read:
    """From what convert.to_hf wrote."""
    about = _read_json(folder / "config.json")
    trained = {f"config.{name}": value for name, value in flat(about.get("training", {})).items()} | {
        "language model sha256": about.get("llm_sha256"),
        "config.llm.quantization": "nf4" if about.get("quantization") == "nf4" else "none",
        "config.data.feature_width": about.get("feature_width"),
        "config.encoder.train": about.get("trained_encoder"),
    }
    with_encoder = bool(trained["config.encoder.train"])

    def check(fits):
        for name, value in fits.items():
            if name in trained and trained[name] != value:
                raise InputError(f"{folder} was trained with {name} {trained[name]}, not {value}")

    _check_fits(experiment, with_encoder, folder, check)
    wanted = {name: experiment.trainable[name] for name in ("llm", "projector")}  # a CTC head begins anew

    def read():
        files = [folder / "adapter" / "adapter_model.safetensors", folder / "projector.safetensors"]
        placed = _read_files(wanted, files)
        if not with_encoder:
            return placed, {}
        weights = flatten_dict(load_flax(folder / "encoder")[1])
        encoder, stats = (
            {"encoder": _placed(tree["encoder"], weights)} for tree in (experiment.trainable, experiment.batch_stats)
        )
        return placed | encoder, stats

    return read


def _read_files(wanted: Tree, files: list[epath.Path]) -> Tree:
    """Adapters and projector from an export's two files, in the shapes and places of `wanted`."""
    values: dict[str, np.ndarray] = {}
    for file in files:
        try:
            values |= safetensors.numpy.load(file.read_bytes())
        except (OSError, SafetensorError) as error:
            raise InputError(f"{file} cannot be read ({error}), expected the file that convert.to_hf wrote") from error
    named, where = tensors(wanted), str(files[0].parent.parent)
    check_names([tensor.name for tensor in named], values.keys(), where)
    shapes = {tensor.name: tensor.shape for tensor in named}
    check_shapes(shapes, {name: value.shape for name, value in values.items()}, where, "does not fit config.lora")
    ours = {path: np.empty(leaf.shape, leaf.dtype) for path, leaf in flatten_dict(wanted, sep="/").items()}
    for tensor in named:
        ours[tensor.path][tensor.index] = tensor.to_ours(values[tensor.name])
    return _placed(wanted, {tuple(path.split("/")): value for path, value in ours.items()})


def _placed(abstract: Tree, weights: dict[tuple[str, ...], np.ndarray]) -> Tree:
    flat = flatten_dict(abstract)
    return unflatten_dict({path: jax.device_put(weights[path], leaf.sharding) for path, leaf in flat.items()})


def _read_json(path: epath.Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} cannot be read ({error}), expected an export of convert.to_hf") from error
