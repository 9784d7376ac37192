"""Takes up a ViAVSP-LLM that the reference trained with fairseq: its `checkpoint_best.pt` becomes a work folder.

    python -m convert.from_reference checkpoint_best.pt --workdir DIR --config=configs/final.py \
        --config.llm.path=data/llm [--restart] [--encoder_output DIR --avhubert large_vox_iter5.pt]

`python -m viavsp_jax.main` with the same config and work folder then evaluates it or trains it on, with Adam's moments
and from the update where the reference stopped; the training data starts anew. With --restart only the weights are
taken, for a new schedule from update 0. The validation accuracy counts as 0 until the first validation here.
--encoder_output writes the encoder's weights, which the reference may have trained too, in the form of
convert.from_fairseq; its config comes from --avhubert, since `checkpoint_best.pt` has none.
"""

import argparse
import os
from collections.abc import Callable, Sequence
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
from ml_collections import config_flags

from convert.checkpoints import AdamMoments, FairseqCheckpoint, read_fairseq, read_moments
from convert.from_fairseq import encoder_config, write_encoder
from convert.names import REFERENCE_ENCODER, Tensor, Tree, check_names, flatten, tensors
from viavsp_jax.checkpoint import Checkpoints
from viavsp_jax.errors import InputError, reported_to_user
from viavsp_jax.experiment import Experiment, load_experiment
from viavsp_jax.models.avhubert_config import AVHubertConfig
from viavsp_jax.optimizer import make_optimizer
from viavsp_jax.prepare.avhubert_torch import CONFIG_FILE
from viavsp_jax.state import TrainState


def convert(
    path: epath.PathLike, config: ml_collections.ConfigDict, workdir: epath.PathLike, restart: bool = False
) -> None:
    """Writes a training checkpoint, see the module's docstring; prints what was found.

    Raises InputError if the checkpoint does not fit the config or its language model, or the work folder holds a
    checkpoint already.
    """
    experiment = load_experiment(config)
    state = read_state(path, experiment, restart)
    checkpoints = Checkpoints(workdir)
    if checkpoints.latest_step() is not None:
        raise InputError(f"{workdir} already holds a checkpoint: give another --workdir")
    checkpoints.save(state, None, config.to_json(), experiment.fits, {"accuracy": 0.0})
    checkpoints.close()
    print(f"wrote {workdir}: update {state.step}; the training data starts with its first batch")
    if state.step >= config.updates:
        print(f"config.updates is {config.updates}: nothing is left to train; raise it, or use --restart")


def read_state(path: epath.PathLike, experiment: Experiment, restart: bool = False) -> TrainState:
    """The reference's checkpoint as a state of training.

    With `restart` the update is 0 and the optimizer new; so is Adam, which is then said, when its moments cannot be
    told apart. Raises InputError if the checkpoint does not fit the experiment.
    """
    read = read_fairseq(path)
    wanted = fitting(read, experiment, str(path))
    trainable = gather(experiment.trainable, wanted, lambda tensor: read.model[tensor.reference_name])
    optimizer, _ = make_optimizer(experiment.config)
    opt_state = optimizer.init(trainable)
    if restart:
        return TrainState(jnp.int32(0), trainable, opt_state)
    if read.num_updates is None:
        raise InputError(f"{path}: its optimizer_history names no num_updates, expected them, or --restart")
    moments = read_moments(path, [tensor.reference_name for tensor in wanted])
    if isinstance(moments, str):
        print(f"{path}: {moments}; Adam starts with zero moments")
    return TrainState(
        jnp.int32(read.num_updates),
        trainable,
        continued(opt_state, read.num_updates, None if isinstance(moments, str) else moments, wanted),
    )


def fitting(read: FairseqCheckpoint, experiment: Experiment, path: str) -> list[Tensor]:
    """The learnt tensors, in the reference's order. InputError for another rank, width or language model."""
    wanted = sorted(tensors(experiment.trainable), key=lambda tensor: tensor.reference_order)
    found = {name: tuple(value.shape) for name, value in read.model.items() if not name.startswith(REFERENCE_ENCODER)}
    config = experiment.config
    check_sizes(path, {
        "config.lora.rank": (config.lora.rank, {found[name][0] for name in found if ".lora_A." in name}),
        "config.data.feature_width": (
            config.data.feature_width, {found[name][-1] for name in found if name == "avfeat_to_llm.weight"}
        ),
    })  # fmt: skip
    check_names([tensor.reference_name for tensor in wanted], found, path)
    wrong = [
        f"{tensor.reference_name} is {list(found[tensor.reference_name])} and not {list(tensor.shape)}"
        for tensor in wanted
        if found[tensor.reference_name] != tensor.shape
    ]
    if wrong:
        raise InputError(f"{path} does not fit the language model in {config.llm.path}: {'; '.join(wrong)}")
    return wanted


def check_sizes(path: str, sizes: dict[str, tuple[int, set[int]]]) -> None:
    """InputError that names all settings, (theirs, what the tensors say), that the tensors contradict."""
    wrong = [f"{name} is {ours}, its tensors have {sorted(theirs)}" for name, (ours, theirs) in sizes.items()
             if theirs and theirs != {ours}]  # fmt: skip
    if wrong:
        raise InputError(f"{path} does not fit the config: {'; '.join(wrong)}")


def gather(abstract: Tree, wanted: list[Tensor], read: Callable[[Tensor], torch.Tensor]) -> Tree:
    """The reference's tensors as our stacks: a tree like `abstract`, float32."""
    flat = {path: np.empty(leaf.shape, np.float32) for path, leaf in flatten(abstract).items()}
    for tensor in wanted:
        flat[tensor.path][tensor.index] = tensor.turned(read(tensor).float().numpy())
    return jax.tree.map(jnp.asarray, traverse_util.unflatten_dict(flat, sep="/"))


def continued(opt_state: Any, num_updates: int, moments: AdamMoments | None, wanted: list[Tensor]) -> Any:
    """A new optimizer's state, moved to `num_updates` of the schedule and, if there are any, to Adam's moments."""

    def moved(state: Any) -> Any:
        if isinstance(state, optax.ScaleByScheduleState):
            return optax.ScaleByScheduleState(jnp.int32(num_updates))
        if isinstance(state, optax.ScaleByAdamState) and moments is not None:
            mu = gather(state.mu, wanted, lambda tensor: moments.exp_avg[tensor.reference_name])
            nu = gather(state.nu, wanted, lambda tensor: moments.exp_avg_sq[tensor.reference_name])
            return optax.ScaleByAdamState(jnp.int32(moments.step), mu, nu)
        return state

    kinds = (optax.ScaleByScheduleState, optax.ScaleByAdamState)
    return jax.tree.map(moved, opt_state, is_leaf=lambda state: isinstance(state, kinds))


def convert_encoder(path: epath.PathLike, avhubert: epath.PathLike, output: epath.PathLike) -> None:
    """Writes the encoder of the reference's checkpoint.

    Args:
      path: `checkpoint_best.pt`.
      avhubert: the pre-trained AV-HuBERT it grew from, a fairseq `.pt` or an encoder folder; gives the config.
      output: the encoder folder.

    Raises InputError that lists every missing, unknown or misshapen weight.
    """
    if epath.Path(avhubert).is_dir():
        config = AVHubertConfig.from_json(epath.Path(avhubert) / CONFIG_FILE)
    else:
        config = encoder_config(read_fairseq(avhubert), str(avhubert))
    model = read_fairseq(path).model
    weights = {
        name.removeprefix(REFERENCE_ENCODER): tensor
        for name, tensor in model.items()
        if name.startswith(REFERENCE_ENCODER)
    }
    write_encoder(output, config, weights, os.path.abspath(path), torch.float32)
    print(f"wrote {output}: the encoder")


def read_config(arguments: Sequence[str]) -> ml_collections.ConfigDict:
    """`--config=FILE` and any `--config.name=value`, read as viavsp_jax.main does; InputError for anything else."""
    values, argv = flags.FlagValues(), ["", *arguments]
    config = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    try:
        rest, settings = values(argv)[1:], config.value
        if settings is not None:
            settings.lock()  # what could not be loaded says so only when it is used
    except (flags.Error, OSError, AttributeError, TypeError, ValueError) as error:
        raise InputError(f"--config: {str(error).strip().splitlines()[-1].strip()}") from None
    if rest or settings is None:
        raise InputError(f"unexpected argument {rest[0]}" if rest else "--config is missing, expected a configs/*.py")
    return settings


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m convert.from_reference", description=__doc__.split("\n")[0],
        epilog="--config=FILE and --config.name=value are those of python -m viavsp_jax.main.",
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("checkpoint", metavar="CHECKPOINT.pt", help="fairseq checkpoint of the reference")
    parser.add_argument("--workdir", required=True, help="the work folder to write")
    parser.add_argument("--restart", action="store_true", help="take the weights only, for training from update 0")
    parser.add_argument("--encoder_output", metavar="DIR", help="also write the encoder, to this folder")
    parser.add_argument("--avhubert", metavar="PT_OR_DIR", help="gives the config of the encoder")
    args, rest = parser.parse_known_args(argv)
    with reported_to_user():
        if bool(args.encoder_output) != bool(args.avhubert):
            raise InputError("--encoder_output and --avhubert go together: expected both or neither")
        convert(args.checkpoint, read_config(rest), args.workdir, args.restart)
        if args.encoder_output:
            convert_encoder(args.checkpoint, args.avhubert, args.encoder_output)


if __name__ == "__main__":
    main()
