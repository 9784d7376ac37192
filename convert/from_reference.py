"""Takes up a ViAVSP-LLM that the reference trained with fairseq: its `checkpoint_best.pt` becomes a work folder.

    python -m convert.from_reference checkpoint_best.pt --workdir DIR --config=configs/final.py \
        --config.llm.path=data/llm [--restart] [--encoder_output DIR --avhubert large_vox_iter5.pt]

`python -m viavsp_jax.main` with the same config and work folder then evaluates it or trains it on, with Adam's moments
and from the update where the reference stopped; the training data starts anew. With --restart only the weights are
taken, for a new schedule from update 0. The validation accuracy counts as 0 until the first validation here.

With --config.encoder.train=true the encoder is taken up too, weights, statistics and moments; its config is that of
--config.encoder.path. Its own Adam begins anew, which is said, where the reference had not trained it yet.
--encoder_output writes the encoder's weights, which the reference may have trained too, in the form of
convert.from_fairseq; its config comes from --avhubert, since `checkpoint_best.pt` has none.
"""

import argparse
import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import torch
from absl import flags
from etils import epath
from flax import traverse_util

from convert import avhubert
from convert.checkpoints import FairseqCheckpoint, read_fairseq, read_moments
from convert.from_fairseq import encoder_config
from convert.names import REFERENCE_ENCODER, Tensor, Tree, check_shapes, flatten, reference_order, tensors
from convert.pretrained import Pretrained, write_encoder
from convert.work_folder import adapters, check_reference_holds, encoder_weights
from viavsp_jax import config_file, encoder_folder
from viavsp_jax.checkpoint import Checkpoints
from viavsp_jax.data.pipeline import shard_folders
from viavsp_jax.experiment import Experiment, load_experiment
from viavsp_jax.optimizer import make_optimizer
from viavsp_jax.prepare.features.avhubert_torch import UNUSED_KEYS
from viavsp_jax.runtime.backends import start_devices
from viavsp_jax.runtime.errors import InputError, reported_to_user
from viavsp_jax.runtime.options import new_folder
from viavsp_jax.runtime.run_info import run_info
from viavsp_jax.state import TrainState


def convert(path: epath.PathLike, experiment: Experiment, workdir: epath.PathLike, restart: bool = False) -> None:
    """Writes a training checkpoint, see the module's docstring; prints what was found.

    Raises InputError if the checkpoint does not fit the config or its language model, or the work folder holds a
    checkpoint already.
    """
    state = read_state(path, experiment, restart)
    checkpoints = Checkpoints(workdir, experiment.settings.training.checkpoint_keep)
    if checkpoints.latest_step() is not None:
        raise InputError(f"{workdir} already holds a checkpoint: give another --workdir")
    made_by = run_info(experiment.mesh, shard_folders(experiment.settings.data))
    checkpoints.save(state, None, experiment.config, experiment.fits, made_by, {"accuracy": 0.0})
    checkpoints.close()
    print(f"wrote {workdir}: update {state.step}; the training data starts with its first batch")
    updates = experiment.settings.training.updates
    if state.step >= updates:
        print(f"config.updates is {updates}: nothing is left to train; raise it, or use --restart")


def read_state(path: epath.PathLike, experiment: Experiment, restart: bool = False) -> TrainState:
    """The reference's checkpoint as a state of training.

    With `restart` the update is 0 and the optimizer new; so is Adam, which is then said, when its moments cannot be
    told apart. Raises InputError if the checkpoint does not fit the experiment.
    """
    read = read_fairseq(path)
    check_reference_holds(experiment.model.llama, experiment.settings.lora)
    wanted, of_encoder, statistics = fitting(read, experiment, str(path)), [], []
    if experiment.model.encoder:
        check_encoder(read, experiment, str(path))
        of_encoder, statistics = encoder_tensors(experiment.trainable), encoder_tensors(experiment.batch_stats)
    trainable = gather(experiment.trainable, wanted + of_encoder, read.model)
    batch_stats = gather(experiment.batch_stats, statistics, read.model)
    opt_state = make_optimizer(experiment.settings.optimizer)[0].init(trainable)
    if restart:
        return TrainState(jnp.int32(0), trainable, opt_state, batch_stats)
    updates = read.num_updates
    if updates is None:
        raise InputError(f"{path}: its optimizer_history names no num_updates, expected them, or --restart")
    adam = read_adam(path, wanted, adapters(experiment.trainable), "Adam")
    if not experiment.model.encoder:
        return TrainState(jnp.int32(updates), trainable, continued(opt_state, updates, adam))
    late = read_adam(path, of_encoder, {"encoder": experiment.trainable["encoder"]}, "Adam of the encoder")
    # The encoder's schedule begins with the update in which it first learns.
    trained_for = max(0, updates - experiment.settings.optimizer.freeze_updates)
    parts = opt_state.inner_states
    inner = {
        "encoder": continued(parts["encoder"], trained_for, late),
        "others": continued(parts["others"], updates, adam),
    }
    return TrainState(jnp.int32(updates), trainable, opt_state._replace(inner_states=inner), batch_stats)


def read_adam(path: epath.PathLike, wanted: list[Tensor], abstract: Tree, whose: str) -> optax.ScaleByAdamState | None:
    """The file's moments of all of `abstract`; None, which is said of `whose`, where they cannot be told apart."""
    moments = read_moments(path, [tensor.reference_name for tensor in wanted])
    if isinstance(moments, str):
        print(f"{path}: {moments}; {whose} starts with zero moments")
        return None
    mu, nu = (gather(abstract, wanted, values) for values in (moments.exp_avg, moments.exp_avg_sq))
    return optax.ScaleByAdamState(jnp.int32(moments.step), mu, nu)


def fitting(read: FairseqCheckpoint, experiment: Experiment, path: str) -> list[Tensor]:
    """The trained tensors besides the encoder's, in the reference's order.

    Raises InputError for another rank, width or language model.
    """
    wanted = sorted(tensors(adapters(experiment.trainable)), key=reference_order)
    found = {name: tuple(value.shape) for name, value in read.model.items() if not name.startswith(REFERENCE_ENCODER)}
    settings, ranks = experiment.settings, [found[name][:1] for name in found if ".lora_A." in name]
    widths = {*found.get("avfeat_to_llm.weight", ())[-1:]}
    wrong = [
        f"{name} is {ours}, its tensors have {sorted(theirs)}"
        for name, ours, theirs in (
            ("config.lora.rank", settings.lora.rank, {*itertools.chain(*ranks)}),
            ("config.data.feature_width", settings.data.feature_width, widths),
        )
        if theirs and theirs != {ours}
    ]
    if wrong:
        raise InputError(f"{path} does not fit the config: {'; '.join(wrong)}")
    shapes = {tensor.reference_name: tensor.shape for tensor in wanted}
    check_shapes(shapes, found, path, f"does not fit the language model in {settings.llm.path}")
    return wanted


def check_encoder(read: FairseqCheckpoint, experiment: Experiment, path: str) -> None:
    """InputError if the checkpoint has no encoder, or one that is not that of `config.encoder.path`."""
    found = {
        name: tuple(value.shape)
        for name, value in read.model.items()
        if name.startswith(REFERENCE_ENCODER) and name.removeprefix(REFERENCE_ENCODER) not in UNUSED_KEYS
    }
    if not found:
        raise InputError(f"{path} holds no encoder, expected one, or --config.encoder.train=false")
    weights = avhubert.tensors(encoder_weights(experiment.trainable, experiment.batch_stats))
    shapes = {tensor.reference_name: tensor.shape for tensor in weights}
    check_shapes(shapes, found, path, f"does not fit the encoder in {experiment.settings.encoder.path}")


def gather(abstract: Tree, wanted: list[Tensor], values: dict[str, torch.Tensor]) -> Tree:
    """Tensors by the reference's names as our stacks, in the shapes and dtypes of `abstract`."""
    flat = {path: np.empty(leaf.shape, leaf.dtype) for path, leaf in flatten(abstract).items()}
    for tensor in wanted:
        value = values[tensor.reference_name]
        value = value.float() if value.is_floating_point() else value  # NumPy has no bfloat16
        flat[tensor.path][tensor.index] = tensor.to_ours(value.numpy())
    return jax.tree.map(jnp.asarray, traverse_util.unflatten_dict(flat, sep="/"))


def encoder_tensors(abstract: Tree) -> list[Tensor]:
    """Those of what `abstract` holds under "encoder"."""
    found = avhubert.tensors(abstract["encoder"])
    return [dataclasses.replace(tensor, path=f"encoder/{tensor.path}") for tensor in found]


def continued(opt_state: Any, updates: int, adam: optax.ScaleByAdamState | None) -> Any:
    """A new optimizer's state, moved to `updates` of its schedule and, if there is one, to that state of Adam."""

    def moved(state: Any) -> Any:
        if isinstance(state, optax.ScaleByScheduleState):
            return optax.ScaleByScheduleState(jnp.int32(updates))
        if isinstance(state, optax.ScaleByAdamState) and adam is not None:
            # What the optimizer's other parts are about stays masked.
            return optax.ScaleByAdamState(adam.count, state.mu | adam.mu, state.nu | adam.nu)
        return state

    kinds = (optax.ScaleByScheduleState, optax.ScaleByAdamState)
    return jax.tree.map(moved, opt_state, is_leaf=lambda state: isinstance(state, kinds))


def convert_encoder(path: epath.PathLike, avhubert: epath.PathLike, output: epath.PathLike) -> None:
    """Writes the encoder of the reference's checkpoint to the folder `output`.

    Its config is that of the pre-trained `avhubert` it grew from, a fairseq `.pt` or an encoder folder.

    Raises InputError that lists every missing, unknown or misshapen weight.
    """
    if epath.Path(avhubert).is_dir():
        config = encoder_folder.read_config(avhubert)
    else:
        config = encoder_config(read_fairseq(avhubert), str(avhubert))
    model = read_fairseq(path).model
    weights = {
        name.removeprefix(REFERENCE_ENCODER): tensor
        for name, tensor in model.items()
        if name.startswith(REFERENCE_ENCODER)
    }
    write_encoder(output, Pretrained(config, weights, str(path)), torch.float32)
    print(f"wrote {output}: the encoder")


def read_config(arguments: Sequence[str]) -> ml_collections.ConfigDict:
    """`--config=FILE` and any `--config.name=value`, read as viavsp_jax.main does; InputError for anything else."""
    values, argv = flags.FlagValues(), ["", *arguments]
    config = config_file.define("File with the settings.", values, argv)
    rest = config_file.parse(argv, values)[1:]
    if rest or config.value is None:
        raise InputError(f"unexpected argument {rest[0]}" if rest else "--config is missing, expected a configs/*.py")
    return config.value


@reported_to_user()
def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m convert.from_reference", description=__doc__.split("\n")[0],
        epilog="--config=FILE and --config.name=value are those of python -m viavsp_jax.main.",
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("checkpoint", metavar="CHECKPOINT.pt", help="fairseq checkpoint of the reference")
    parser.add_argument("--workdir", type=new_folder("--workdir"), required=True, help="the work folder to write")
    parser.add_argument("--restart", action="store_true", help="take the weights only, for training from update 0")
    parser.add_argument(
        "--encoder_output",
        type=new_folder("--encoder_output"),
        metavar="DIR",
        help="also write the encoder, to this folder",
    )
    parser.add_argument("--avhubert", metavar="PT_OR_DIR", help="gives the config of the encoder")
    args, rest = parser.parse_known_args(argv)
    if bool(args.encoder_output) != bool(args.avhubert):
        raise InputError("--encoder_output and --avhubert go together: expected both or neither")
    start_devices()
    convert(args.checkpoint, load_experiment(read_config(rest)), args.workdir, args.restart)
    if args.encoder_output:
        convert_encoder(args.checkpoint, args.avhubert, args.encoder_output)


if __name__ == "__main__":
    main()
