"""Checkpoints: the frozen language model in its folder, and what training learns. The only file with orbax in it.

A language-model folder, made by `python -m convert.from_hf`, holds `config.json` and the tokenizer files of the
Hugging Face model, `conversion.json` (source, sha256 of the weights, dtype, version) and the weights in `params/`,
one Orbax checkpoint for each stack of layers, so that neither side ever needs more than one stack in memory.
"""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from viavsp_jax.errors import InputError
from viavsp_jax.models.llama import LlamaConfig
from viavsp_jax.state import TrainState

Tree = dict[str, Any]

# Stored in pieces of about this size, so that hosts that hold a part of an array read little more than that part.
_CHUNK_BYTES = 64 * 2**20


def llama_config(folder: epath.PathLike) -> LlamaConfig:
    """Shape of the LLaMA in a folder with a Hugging Face `config.json`; InputError for anything but a plain LLaMA."""
    path = epath.Path(folder) / "config.json"
    if not path.exists():
        raise InputError(
            f"{path} does not exist: expected a folder with a LLaMA, as python -m convert.from_hf makes it"
        )
    try:
        config = json.loads(path.read_text())
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        asked = {
            "model_type": (config["model_type"], "llama"),
            "hidden_act": (config.get("hidden_act", "silu"), "silu"),
            "attention_bias": (config.get("attention_bias", False), False),
            "mlp_bias": (config.get("mlp_bias", False), False),
            "rope type": (rope.get("rope_type", rope.get("type", "default")), "default"),
        }
        heads = config["num_attention_heads"]
        shape = LlamaConfig(
            vocab_size=config["vocab_size"],
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            num_layers=config["num_hidden_layers"],
            num_heads=heads,
            num_kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            rope_theta=float(rope.get("rope_theta") or config.get("rope_theta", 10_000.0)),
            rms_norm_eps=config.get("rms_norm_eps", 1e-6),
            tie_word_embeddings=config.get("tie_word_embeddings", False),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not the config of a LLaMA: {error!r}") from None
    for name, (found, wanted) in asked.items():
        if found != wanted:
            raise InputError(f"{path}: {name} is {found!r}, only {wanted!r} is supported")
    return shape


def save_llm(folder: epath.PathLike, weights: Iterable[tuple[str, np.ndarray]], conversion: dict[str, str]) -> None:
    """Writes the weights, taken one by one as (path in the language model, array), and `conversion.json`.

    The sha256 of all paths and bytes is added to `conversion`. That file comes last: it marks completion.
    """
    folder = epath.Path(folder).absolute()
    (folder / "conversion.json").unlink(missing_ok=True)
    digest = hashlib.sha256()
    for path, array in weights:
        digest.update(path.encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
        with ocp.StandardCheckpointer() as checkpointer:
            save_args = {"array": ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES)}
            checkpointer.save(_array_folder(folder, path), {"array": array}, save_args=save_args, force=True)
        del array  # before the next one is made
    (folder / "conversion.json").write_text(json.dumps(conversion | {"sha256": digest.hexdigest()}, indent=2))


def _array_folder(folder: epath.Path, path: str) -> epath.Path:
    return folder / "params" / path.replace("/", ".")


def read_conversion(folder: epath.PathLike) -> dict[str, str]:
    """`conversion.json` of a language-model folder: `source`, `sha256`, `dtype`, `version`."""
    folder = epath.Path(folder)
    llama_config(folder)
    if not (folder / "conversion.json").exists():
        raise InputError(
            f"{folder} is not a converted language model: run python -m convert.from_hf {folder} --output FOLDER once "
            "and give that folder"
        )
    return json.loads((folder / "conversion.json").read_text())


def load_llm(folder: epath.PathLike, abstract: Tree) -> Tree:
    """Reads frozen weights straight to the shape, dtype and sharding of `abstract` (jax.ShapeDtypeStruct).

    `abstract` may leave weights out; without a sharding they come as numpy arrays.
    """
    read_conversion(folder)
    folder, weights = epath.Path(folder).absolute(), {}
    with ocp.StandardCheckpointer() as checkpointer:
        for path, shape in traverse_util.flatten_dict(abstract, sep="/").items():
            weights[path] = checkpointer.restore(_array_folder(folder, path), {"array": shape})["array"]
    return traverse_util.unflatten_dict(weights, sep="/")


class Checkpoints:
    """Training checkpoints of a work folder: state, data iterator and config, together or not at all.

    Kept are the last `keep` and the one with the highest validation accuracy.
    """

    def __init__(self, workdir: epath.PathLike, keep: int = 1):
        self.folder = epath.Path(workdir).absolute() / "checkpoints"
        best = BestN(get_metric_fn=lambda metrics: metrics["accuracy"], n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy([LatestN(keep), best]),
            best_fn=lambda metrics: metrics["accuracy"],
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def save(
        self,
        state: TrainState,
        data: grain.DatasetIterator,
        config: str,
        fits: dict[str, Any],
        metrics: dict[str, float],
    ) -> None:
        """Starts saving in the background.

        Args:
          state, data: what a restart needs.
          config: the run's config as JSON.
          fits: what the learnt weights fit: sizes of the adapters and the frozen weights' hash, by name.
          metrics: of the validation split, with its `accuracy`.
        """
        items = ocp.args.Composite(
            trainable=ocp.args.StandardSave(state.trainable),
            optimizer=ocp.args.StandardSave({"step": state.step, "state": state.opt_state}),
            data=grain.checkpoint.CheckpointSave(data),
            config=ocp.args.JsonSave(json.loads(config)),
            fits=ocp.args.JsonSave(fits),
        )
        self._manager.save(int(state.step), args=items, metrics=metrics)

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def best_step(self) -> int:
        """The step of the checkpoint with the best validation accuracy; InputError when there is none."""
        best = self._manager.best_step()
        if best is None:
            raise InputError(f"{self.folder} holds no checkpoint: train first, or give another --workdir")
        return best

    def choose(self, which: str) -> int:
        """The step meant by `best`, `latest` or a number; InputError when there is no such checkpoint."""
        if which == "best":
            return self.best_step()
        steps = self._manager.all_steps()
        step = self.latest_step() if which == "latest" else int(which) if which.isdecimal() else None
        if step not in steps:
            raise InputError(f"{self.folder} holds no checkpoint {which}: expected best, latest or one of {steps}")
        return step

    def check_fits(self, step: int, fits: dict[str, Any]) -> None:
        """InputError when anything in `fits` has another value than it had for `save` at `step`."""
        trained = self._manager.restore(step, args=ocp.args.Composite(fits=ocp.args.JsonRestore())).fits
        for name, value in fits.items():
            if trained[name] != value:
                raise InputError(
                    f"checkpoint {step} in {self.folder} was trained with {name} {trained[name]}, not {value}"
                )

    def restore(self, step: int, state: TrainState, data: grain.DatasetIterator) -> TrainState:
        """The state saved at `step`, in the shapes and shardings of `state`; moves `data` to where it was."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        items = self._manager.restore(step, args=ocp.args.Composite(
            trainable=ocp.args.StandardRestore(abstract.trainable),
            optimizer=ocp.args.StandardRestore({"step": abstract.step, "state": abstract.opt_state}),
            data=grain.checkpoint.CheckpointRestore(data),
        ))  # fmt: skip
        return TrainState(items.optimizer["step"], items.trainable, items.optimizer["state"])

    def restore_trainable(self, step: int, abstract: Tree) -> Tree:
        """Only the learnt weights saved at `step`, in the shapes and shardings of `abstract`."""
        items = self._manager.restore(step, args=ocp.args.Composite(trainable=ocp.args.StandardRestore(abstract)))
        return items.trainable

    def restore_config(self, step: int) -> dict[str, Any]:
        """The config a checkpoint was trained with."""
        return self._manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore())).config

    def close(self) -> None:
        """Waits for saves under way."""
        self._manager.close()
