"""The door for settings: a config turned into dataclasses, mesh, prompt, model structure and weights."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from jax.typing import DTypeLike

from convert.avhubert import load_flax
from viavsp_jax import encoder_folder, llm_folder, sharding, state
from viavsp_jax.compatibility import HAS_CTC
from viavsp_jax.data.features import AUDIO_DIM
from viavsp_jax.data.prompt import Prompt, load_prompt
from viavsp_jax.models.attention import PackedAttention
from viavsp_jax.models.avhubert.config import AVHubertConfig, EncoderTraining
from viavsp_jax.models.llama import LlamaConfig
from viavsp_jax.models.lora import LoRAConfig
from viavsp_jax.models.nf4 import BLOCK
from viavsp_jax.models.quantize import quantize_stack
from viavsp_jax.models.viavsp import CTCConfig, ModelConfig, ViAVSP
from viavsp_jax.run_settings import CTCSettings, LanguageModelSettings, Settings, follow_devices, read_settings
from viavsp_jax.runtime import programs
from viavsp_jax.runtime.errors import InputError

Tree = dict[str, Any]
Stacks = dict[tuple[str, ...], jax.ShapeDtypeStruct]  # by path in the language model


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Settings at work. Weights are shapes with shardings until they are asked for."""

    settings: Settings
    mesh: Mesh
    model: ModelConfig
    structure: nnx.GraphDef
    trainable: Tree  # jax.ShapeDtypeStruct
    frozen: Tree  # jax.ShapeDtypeStruct, of the language model
    batch_stats: Tree  # jax.ShapeDtypeStruct, of the encoder's BatchNorm; empty without an encoder
    to_quantize: Stacks  # before they are
    prompt: Prompt | None = None  # None where nothing but shapes is needed
    fits: dict[str, Any] = dataclasses.field(default_factory=dict)  # what trained weights fit, see Checkpoints.save
    config: str = ""  # the user's, as JSON, to be saved with checkpoints

    def init_trainable(self) -> Tree:
        """New adapters and projector from `config.seed`; the frozen weights are never made."""
        new = {name: tree for name, tree in self.trainable.items() if name != "encoder"}

        def init(key):
            trainable = state.split(ViAVSP(self.model, nnx.Rngs(params=key)))[1]
            return {name: trainable[name] for name in new}

        shardings = jax.tree.map(lambda x: x.sharding, new)
        return programs.jit(self.mesh, init, out_shardings=shardings)(jax.random.key(self.settings.training.seed))

    def load_encoder(self) -> tuple[Tree, Tree]:
        """The pre-trained encoder's weights and the statistics of its BatchNorm; both empty without an encoder."""
        if self.model.encoder is None:
            return {}, {}
        pretrained = flatten_dict(load_flax(self.settings.encoder.path)[1])

        def placed(tree):
            flat = flatten_dict(tree["encoder"])
            weights = {path: jax.device_put(pretrained[path], x.sharding) for path, x in flat.items()}
            return {"encoder": unflatten_dict(weights)}

        return placed(self.trainable), placed(self.batch_stats)

    def _never_quantized(self) -> Stacks:
        """The weights of the language model that stay as they are stored."""
        frozen = flatten_dict(self.frozen["llm"])
        return {path: shape for path, shape in frozen.items() if path[:-1] not in self.to_quantize}

    def check_frozen(self) -> None:
        """Raises InputError that lists the frozen weights that are missing or of another shape; reads none."""
        llm_folder.check_weights(self.settings.llm.path, unflatten_dict(self._never_quantized() | self.to_quantize))

    def load_frozen(self) -> Tree:
        """The frozen language model, straight to its devices; at most one stack is there before it is quantised."""
        folder, frozen = self.settings.llm.path, flatten_dict(self.frozen["llm"])
        as_stored = self._never_quantized()
        weights = flatten_dict(llm_folder.load_llm(folder, unflatten_dict(as_stored)))
        for kernel, shape in self.to_quantize.items():
            shardings = {path[-1]: target.sharding for path, target in frozen.items() if path[:-1] == kernel}
            (stack,) = flatten_dict(llm_folder.load_llm(folder, unflatten_dict({kernel: shape}))).values()
            quantize = programs.jit(self.mesh, quantize_stack, static_argnums=1, out_shardings=shardings)
            weights[kernel] = jax.block_until_ready(quantize(stack, self.settings.llm.quantization))
            del stack  # before the next one is read
        return {"llm": unflatten_dict(weights)}


def stacks_to_quantize(llm: LanguageModelSettings, llama: LlamaConfig, mesh: Mesh, stored_dtype: DTypeLike) -> Stacks:
    """The kernels that `config.llm.quantization` is about, in the shape and dtype that they are stored in.

    Raises InputError for a kernel that does not fit the blocks of nf4.
    """
    if llm.quantization == "none":
        return {}
    # The frozen weights do not depend on the adapter and the encoder.
    _, _, frozen = state.abstract_model(ModelConfig(llama, LoRAConfig(), 1, stored_dtype))
    frozen = sharding.with_sharding(frozen, sharding.shard_params(mesh, frozen))
    stacks = {path: shape for path, shape in flatten_dict(frozen["llm"]).items() if path[-1] == "kernel"}
    for path, shape in stacks.items():
        if llm.quantization == "nf4" and shape.shape[1] % BLOCK:
            raise InputError(
                f"{llm.path or 'the language model'}: {'/'.join(path)} has {shape.shape[1]} inputs, "
                f"config.llm.quantization=nf4 needs a multiple of {BLOCK}"
            )
    return stacks


def packed_attention(window: int, instruction: int, dtype: str, mesh: Mesh, llama: LlamaConfig) -> PackedAttention:
    """Attention of training by the fastest kernel that the mesh's devices have for the model's sizes."""
    platform, kernel = mesh.devices.flat[0].platform, "xla"
    if platform == "tpu" and llama.head_dim % 128 == 0:
        kernel = "tpu"
    elif platform == "gpu" and llama.head_dim % 8 == 0 and llama.head_dim <= 128 and dtype == "bfloat16":
        kernel = "cudnn"
    return PackedAttention(window, kernel, instruction, sharding.heads(mesh, llama.num_kv_heads))


def abstract_experiment(
    settings: Settings,
    llama: LlamaConfig,
    mesh: Mesh,
    stored_dtype: DTypeLike,
    instruction: int,
    encoder: AVHubertConfig | None = None,
) -> Experiment:
    """All that shapes tell: enough to compile every program, for devices of any kind. Reads no file.

    `instruction` is the longest one, in tokens; `encoder` the one that is trained, if there is one. Raises InputError
    for sizes that do not go together.
    """
    settings = follow_devices(settings, mesh, instruction)
    if encoder is not None:
        settings = dataclasses.replace(settings, data=dataclasses.replace(settings.data, waveform=encoder.waveform))
    to_quantize, c = stacks_to_quantize(settings.llm, llama, mesh, stored_dtype), settings.encoder
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    model = ModelConfig(
        llama,
        settings.lora,
        settings.data.feature_width,
        jnp.dtype(settings.dtype),
        settings.llm.quantization,
        packed_attention(settings.data.row.window, instruction, settings.dtype, mesh, llama),
        encoder,
        EncoderTraining(c.layer_drop, c.activation_dropout, c.batch_norm, unroll=on_cpu),
        CTCConfig(settings.ctc.units, settings.ctc.width) if settings.ctc.weight else None,
    )
    structure, trainable, frozen = state.abstract_model(model)
    trainable, frozen = (
        sharding.with_sharding(tree, sharding.shard_params(mesh, tree)) for tree in (trainable, frozen)
    )
    batch_stats = {"encoder": frozen.pop("encoder")} if encoder is not None else {}
    return Experiment(settings, mesh, model, structure, trainable, frozen, batch_stats, to_quantize)


def load_encoder_config(settings: Settings) -> AVHubertConfig | None:
    """The sizes of the encoder that is trained, None if there is none. Raises InputError if they are not usable."""
    path, width = settings.encoder.path, settings.data.feature_width
    if not settings.encoder.train:
        return None
    if not path:
        raise InputError("config.encoder.path is not set: expected a folder made by python -m convert.from_fairseq")
    encoder = encoder_folder.read_config(path)
    for what, ours, theirs in (
        ("config.data.feature_width", width, encoder.embed_dim),
        ("audio features of a frame", AUDIO_DIM, encoder.audio_dim),
    ):
        if ours != theirs:
            raise InputError(f"{path}: its encoder has width {theirs}, expected {ours} ({what})")
    return encoder


def encoder_fits(encoder: AVHubertConfig | None) -> dict[str, Any]:
    """The shape of the encoder that is trained, by names for `compatibility.check_fits`; {} if there is none."""
    fields = {} if encoder is None else dataclasses.asdict(encoder)
    # JSON has no tuples.
    return {f"the encoder's {name}": list(x) if isinstance(x, tuple) else x for name, x in fields.items()}


def ctc_fits(ctc: CTCSettings) -> dict[str, Any]:
    """The shape of the CTC head, by names for `compatibility.check_fits`."""
    if not ctc.weight:
        return {HAS_CTC: False}
    return {HAS_CTC: True, "config.ctc.units": ctc.units, "config.ctc.width": ctc.width}


def prompt_fits(prompt: Prompt) -> dict[str, Any]:
    """What text the trained weights were trained on, by names for `compatibility.check_fits`."""
    return {
        "config.llm.end_token": prompt.end_token,
        **{f"config.prompt.{name}": value for name, value in dataclasses.asdict(prompt.settings).items()},
        "tokenizer and instruction sha256": prompt.sha256(),
    }


def llm_path(settings: LanguageModelSettings) -> str:
    """The folder of the language model; InputError if it is not set."""
    if not settings.path:
        raise InputError("config.llm.path is not set: expected a folder made by python -m convert.from_hf")
    return settings.path


def load_experiment(config: ml_collections.ConfigDict) -> Experiment:
    """Reads all that is small and checks it; InputError before anything large is touched."""
    settings = read_settings(config)
    llm, path = settings.llm, llm_path(settings.llm)
    conversion = llm_folder.read_conversion(path)
    llama = llm_folder.llama_config(path)
    prompt = load_prompt(path, llm.end_token, settings.prompt)
    prompt.check_fits(llama.vocab_size)
    encoder, mesh = load_encoder_config(settings), sharding.make_mesh(settings.mesh)
    return assembled(config, settings, conversion, llama, prompt, encoder, mesh)


def assembled(
    config: ml_collections.ConfigDict,
    settings: Settings,
    conversion: Mapping[str, str],
    llama: LlamaConfig,
    prompt: Prompt,
    encoder: AVHubertConfig | None,
    mesh: Mesh,
) -> Experiment:
    """The experiment of what `load_experiment` reads; InputError for sizes that do not go together."""
    llm = settings.llm
    dtype, instruction = jnp.dtype(conversion["dtype"]), max(map(len, prompt.instructions()))
    experiment = abstract_experiment(settings, llama, mesh, dtype, instruction, encoder)
    fits = {
        "config.encoder.train": settings.encoder.train,
        **encoder_fits(encoder),
        "config.lora.rank": settings.lora.rank,
        "config.lora.alpha": settings.lora.alpha,
        "config.lora.targets": list(settings.lora.targets),
        "config.lora.rslora": settings.lora.rslora,
        "config.data.feature_width": settings.data.feature_width,
        "language model sha256": conversion["sha256"],
        # int8 rounds the same weights once more, as a dtype does; nf4 moves them so far that adapters learn to mend it.
        "config.llm.quantization": "nf4" if llm.quantization == "nf4" else "none",
        **prompt_fits(prompt),
        **ctc_fits(settings.ctc),
    }
    return dataclasses.replace(experiment, prompt=prompt, fits=fits, config=_resolved(config, experiment.settings))


def _resolved(config: ml_collections.ConfigDict, settings: Settings) -> str:
    """The config as JSON, with the rows that there are."""
    tree = json.loads(config.to_json())
    tree["data"] |= {"rows": settings.data.rows, "row": dataclasses.asdict(settings.data.row)}
    tree["evaluate"]["rows"] = settings.evaluation.rows
    return json.dumps(tree)
