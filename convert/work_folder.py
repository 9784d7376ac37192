"""What the converters read of a work folder: a training checkpoint, and what it was trained around."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from etils import epath
from flax import traverse_util

from convert.names import Tree, flatten
from viavsp_jax import encoder_folder
from viavsp_jax.checkpoint import Checkpoints
from viavsp_jax.compatibility import check_fits
from viavsp_jax.data.compression import Compression
from viavsp_jax.data.prompt import load_prompt
from viavsp_jax.data.settings import DataSettings
from viavsp_jax.data.sources import check_clusters, folder_of
from viavsp_jax.decoding import calibration
from viavsp_jax.decoding.calibration import Calibration
from viavsp_jax.encoder_folder import CONFIG_FILE
from viavsp_jax.experiment import encoder_fits, prompt_fits
from viavsp_jax.llm_folder import llama_config, read_conversion
from viavsp_jax.models.avhubert.config import AVHubertConfig
from viavsp_jax.models.llama import LlamaConfig
from viavsp_jax.models.lora import LoRAConfig
from viavsp_jax.models.viavsp import CTCConfig, ModelConfig
from viavsp_jax.optimizer import make_optimizer
from viavsp_jax.run_settings import Settings, read_settings
from viavsp_jax.runtime.backends import start_devices
from viavsp_jax.runtime.errors import InputError
from viavsp_jax.settings import completed
from viavsp_jax.state import TrainState, abstract_model


@dataclasses.dataclass(frozen=True)
class WorkFolder:
    """A training checkpoint that fits the language model and the encoder that are there. Weights are shapes."""

    checkpoints: Checkpoints
    step: int
    saved_config: dict[str, Any]  # as it was trained with
    settings: Settings  # the same, with what its version did not have yet
    llm: epath.PathLike
    conversion: dict[str, str]  # of the language model
    encoder: AVHubertConfig | None  # that was trained
    encoder_path: epath.PathLike  # the folder that it grew from
    trainable: Tree  # jax.ShapeDtypeStruct, and so are the next two
    frozen: Tree  # in the stored dtype
    batch_stats: Tree
    calibration: Calibration  # of its CTC head

    def read_weights(self) -> tuple[Tree, Tree]:
        """The trainable weights, and the statistics of the encoder's BatchNorm: numpy arrays."""
        trainable = self.checkpoints.restore_trainable(self.step, here(self.trainable))
        batch_stats = self.checkpoints.restore_batch_stats(self.step, here(self.batch_stats))
        return jax.device_get((trainable, batch_stats))

    def read_state(self) -> TrainState:
        """All that an update changes, as numpy arrays."""
        opt_state = jax.eval_shape(make_optimizer(self.settings.optimizer)[0].init, self.trainable)
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
    start_devices()
    checkpoints = Checkpoints(workdir)
    chosen = checkpoints.choose(step)
    config = checkpoints.restore_config(chosen)
    settings = read_settings(completed(config))
    llm, encoder_path = llm or settings.llm.path, encoder or settings.encoder.path
    conversion, sizes = read_conversion(llm), None
    if settings.encoder.train:
        if not (epath.Path(encoder_path) / CONFIG_FILE).exists():
            raise InputError(
                f"{encoder_path} holds no {CONFIG_FILE}: give the folder that the encoder grew from with --encoder"
            )
        sizes = encoder_folder.read_config(encoder_path)
    prompt = load_prompt(llm, settings.llm.end_token, settings.prompt)
    fits = {"language model sha256": conversion["sha256"], **encoder_fits(sizes)}
    check_fits(checkpoints, chosen, fits | prompt_fits(prompt))
    dtype = np.dtype(getattr(ml_dtypes, conversion["dtype"], conversion["dtype"]))
    ctc = CTCConfig(settings.ctc.units, settings.ctc.width) if settings.ctc.weight else None
    model = ModelConfig(llama_config(llm), settings.lora, settings.data.feature_width, dtype, encoder=sizes, ctc=ctc)
    _, trainable, frozen = abstract_model(model)
    batch_stats = {"encoder": frozen.pop("encoder")} if sizes else {}
    calibrated = Calibration()
    if ctc:
        found = calibration.read(workdir, chosen, checkpoints.weights_sum(chosen))
        calibrated = found.with_weight(settings.evaluation.ctc_weight)
    shapes = trainable, frozen, batch_stats
    return WorkFolder(checkpoints, chosen, config, settings, llm, conversion, sizes, encoder_path, *shapes, calibrated)


def check_reference_holds(llama: LlamaConfig, lora: LoRAConfig) -> None:
    """InputError for a model that the reference's code does not have: it knows LLaMA, with adapters on q, k and v."""
    plain = {field.name: field.default for field in dataclasses.fields(LlamaConfig)}
    other = [
        name for name, value in plain.items() if value is not dataclasses.MISSING and getattr(llama, name) != value
    ]
    if other:
        raise InputError(
            f"the reference's formats hold a LLaMA 2 alone; this language model differs from one in {', '.join(other)}"
        )
    if {*lora.targets} != {*LoRAConfig().targets} or lora.rslora:
        raise InputError(
            "the reference's formats hold adapters on q, k and v, scaled by alpha / rank; this config has "
            f"config.lora.targets={', '.join(lora.targets)} and config.lora.rslora={lora.rslora}"
        )


def training_shards(data: DataSettings) -> epath.Path:
    """The first shard folder that a run was trained on."""
    return folder_of(data, data.train[0])


def chosen_compression(opened: WorkFolder, text: str | None) -> Compression:
    """How frames become positions, as a text says or, without one, the config decodes.

    Raises InputError if it is no such text, or the shards of the training have no clusters that are needed.
    """
    try:
        found = Compression.of(text) if text else opened.settings.evaluation.compression
    except ValueError as error:
        raise InputError(str(error)) from None
    check_clusters(training_shards(opened.settings.data), found)
    return found


def encoder_weights(trainable: Tree, batch_stats: Tree) -> Tree:
    """All of a trained encoder as `convert.avhubert` knows it, trained weights and statistics."""
    return traverse_util.unflatten_dict(flatten(trainable["encoder"]) | flatten(batch_stats["encoder"]), sep="/")


def adapters(trainable: Tree) -> Tree:
    """What the reference's formats hold besides the encoder: adapters and projector, no CTC head."""
    return {name: tree for name, tree in trainable.items() if name not in ("encoder", "ctc")}
