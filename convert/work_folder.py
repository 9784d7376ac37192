"""What the converters read of a work folder: a training checkpoint, and what it was trained around."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_collections
import ml_dtypes
import numpy as np
from etils import epath
from flax import traverse_util

from convert.names import Tree, flatten
from viavsp_jax import encoder_folder
from viavsp_jax.checkpoint import Checkpoints
from viavsp_jax.data.prompt import load_prompt
from viavsp_jax.encoder_folder import CONFIG_FILE
from viavsp_jax.experiment import encoder_fits, prompt_fits, read_settings
from viavsp_jax.llm_folder import llama_config, read_conversion
from viavsp_jax.models.avhubert.config import AVHubertConfig
from viavsp_jax.models.lora import LoRAConfig
from viavsp_jax.models.viavsp import ModelConfig
from viavsp_jax.optimizer import make_optimizer
from viavsp_jax.runtime.errors import InputError
from viavsp_jax.settings import completed
from viavsp_jax.state import TrainState, abstract_model


@dataclasses.dataclass(frozen=True)
class WorkFolder:
    """A training checkpoint that fits the language model and the encoder that are there. Weights are shapes."""

    checkpoints: Checkpoints
    step: int
    config: ml_collections.ConfigDict
    llm: epath.PathLike
    conversion: dict[str, str]  # of the language model
    encoder: AVHubertConfig | None  # that was trained
    encoder_path: epath.PathLike  # the folder that it grew from
    trainable: Tree  # jax.ShapeDtypeStruct, and so are the next two
    frozen: Tree  # in the stored dtype
    batch_stats: Tree

    def read_weights(self) -> tuple[Tree, Tree]:
        """The trainable weights, and the statistics of the encoder's BatchNorm: numpy arrays."""
        trainable = self.checkpoints.restore_trainable(self.step, here(self.trainable))
        batch_stats = self.checkpoints.restore_batch_stats(self.step, here(self.batch_stats))
        return jax.device_get((trainable, batch_stats))

    def read_state(self) -> TrainState:
        """All that an update changes, as numpy arrays."""
        opt_state = jax.eval_shape(
            make_optimizer(read_settings(completed(self.config)).optimizer)[0].init, self.trainable
        )
        state = TrainState(jax.ShapeDtypeStruct((), jnp.int32), self.trainable, opt_state, self.batch_stats)
        return jax.device_get(self.checkpoints.restore(self.step, here(state), None))


def here(abstract: Tree) -> Tree:
    """The same shapes on one device of this machine, wherever they were trained."""
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract)


def open_work_folder(
    workdir: epath.PathLike,
    step: str = "best",
    llm: epath.PathLike | None = None,
    encoder: epath.PathLike | None = None,
) -> WorkFolder:
    """Opens the checkpoint `best`, `latest` or of a number; `llm` and `encoder` replace the folders of its config.

    Raises InputError when there is no such checkpoint, or it does not fit the language model or the encoder.
    """
    if not (epath.Path(workdir) / "checkpoints").exists():
        raise InputError(f"{workdir} holds no checkpoints: train first, or give another --workdir")
    checkpoints = Checkpoints(workdir)
    chosen = checkpoints.choose(step)
    # Earlier versions trained no encoder and had no settings for it.
    config = ml_collections.ConfigDict({"encoder": {"train": False, "path": ""}} | checkpoints.restore_config(chosen))
    llm, encoder_path = llm or config.llm.path, encoder or config.encoder.path
    conversion, sizes = read_conversion(llm), None
    if config.encoder.train:
        if not (epath.Path(encoder_path) / CONFIG_FILE).exists():
            raise InputError(
                f"{encoder_path} holds no {CONFIG_FILE}: give the folder that the encoder grew from with --encoder"
            )
        sizes = encoder_folder.read_config(encoder_path)
    prompt = load_prompt(llm, config.llm.end_token)
    fits = {"language model sha256": conversion["sha256"], **encoder_fits(sizes)}
    checkpoints.check_fits(chosen, fits | prompt_fits(prompt, config.llm.end_token))
    dtype = np.dtype(getattr(ml_dtypes, conversion["dtype"], conversion["dtype"]))
    lora = LoRAConfig(**config.lora)
    _, trainable, frozen = abstract_model(
        ModelConfig(llama_config(llm), lora, config.data.feature_width, dtype, encoder=sizes)
    )
    batch_stats = {"encoder": frozen.pop("encoder")} if sizes else {}
    return WorkFolder(checkpoints, chosen, config, llm, conversion, sizes, encoder_path, trainable, frozen, batch_stats)


def training_shards(config: ml_collections.ConfigDict) -> epath.Path:
    """The first shard folder that a run was trained on."""
    data = config.data
    name = data.get("train", ("av_clean",))[0]
    if config.encoder.train:
        name = f"media_{name.partition('_')[2]}"
    return epath.Path(data.get("path", "")) / name


def encoder_weights(trainable: Tree, batch_stats: Tree) -> Tree:
    """All of a trained encoder as `convert.avhubert` knows it, trained weights and statistics."""
    return traverse_util.unflatten_dict(flatten(trainable["encoder"]) | flatten(batch_stats["encoder"]), sep="/")


def adapters(trainable: Tree) -> Tree:
    """What is trained besides the encoder: adapters and projector."""
    return {name: tree for name, tree in trainable.items() if name != "encoder"}
