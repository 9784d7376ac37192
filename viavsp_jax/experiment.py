"""What training, evaluation and compilation share: a config turned into mesh, prompt, model structure and weights."""

import dataclasses
import functools
from collections.abc import Callable
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
from viavsp_jax.aot.typical_clips import TypicalPrompt
from viavsp_jax.data.features import AUDIO_DIM
from viavsp_jax.data.prompt import Prompt, load_prompt
from viavsp_jax.models.attention import PackedAttention
from viavsp_jax.models.avhubert.config import AVHubertConfig, EncoderTraining
from viavsp_jax.models.llama import LlamaConfig
from viavsp_jax.models.lora import LoRAConfig
from viavsp_jax.models.quantize import BLOCK, quantize_stack
from viavsp_jax.models.viavsp import ViAVSP
from viavsp_jax.runtime import programs
from viavsp_jax.runtime.errors import InputError

Tree = dict[str, Any]
Stacks = dict[tuple[str, ...], jax.ShapeDtypeStruct]  # by path in the language model


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A config at work. Weights are shapes with shardings until they are asked for."""

    config: ml_collections.ConfigDict
    mesh: Mesh
    llama: LlamaConfig
    encoder: AVHubertConfig | None  # that is trained
    structure: nnx.GraphDef
    trainable: Tree  # jax.ShapeDtypeStruct
    frozen: Tree  # jax.ShapeDtypeStruct, of the language model
    batch_stats: Tree  # jax.ShapeDtypeStruct, of the encoder's BatchNorm; empty without an encoder
    to_quantize: Stacks  # before they are
    build: Callable[[jax.Array], ViAVSP]  # from a PRNG key
    prompt: Prompt | TypicalPrompt
    fits: dict[str, Any] = dataclasses.field(default_factory=dict)  # what learnt weights fit, see Checkpoints.save

    def init_trainable(self) -> Tree:
        """New adapters and projector from `config.seed`; the frozen weights are never made."""
        new = {name: tree for name, tree in self.trainable.items() if name != "encoder"}

        def init(key):
            trainable = state.split(self.build(key))[1]
            return {name: trainable[name] for name in new}

        shardings = jax.tree.map(lambda x: x.sharding, new)
        return programs.jit(self.mesh, init, out_shardings=shardings)(jax.random.key(self.config.seed))

    def load_encoder(self) -> tuple[Tree, Tree]:
        """The pre-trained encoder's weights and the statistics of its BatchNorm; both empty without an encoder."""
        if self.encoder is None:
            return {}, {}
        pretrained = flatten_dict(load_flax(self.config.encoder.path)[1])

        def placed(tree):
            flat = flatten_dict(tree["encoder"])
            weights = {path: jax.device_put(pretrained[path], x.sharding) for path, x in flat.items()}
            return {"encoder": unflatten_dict(weights)}

        return placed(self.trainable), placed(self.batch_stats)

    def load_frozen(self) -> Tree:
        """The frozen language model, straight to its devices; at most one stack is there before it is quantised."""
        folder, frozen = self.config.llm.path, flatten_dict(self.frozen["llm"])
        as_stored = {path: shape for path, shape in frozen.items() if path[:-1] not in self.to_quantize}
        weights = flatten_dict(llm_folder.load_llm(folder, unflatten_dict(as_stored)))
        for kernel, shape in self.to_quantize.items():
            shardings = {path[-1]: target.sharding for path, target in frozen.items() if path[:-1] == kernel}
            (stack,) = flatten_dict(llm_folder.load_llm(folder, unflatten_dict({kernel: shape}))).values()
            to_nf4 = programs.jit(self.mesh, quantize_stack, out_shardings=shardings)
            weights[kernel] = jax.block_until_ready(to_nf4(stack))
            del stack  # before the next one is read
        return {"llm": unflatten_dict(weights)}


def stacks_to_quantize(
    config: ml_collections.ConfigDict, llama: LlamaConfig, mesh: Mesh, stored_dtype: DTypeLike
) -> Stacks:
    """The kernels that `config.llm.quantization` is about, in the shape and dtype that they are stored in.

    Raises InputError for a kernel that does not fit its blocks.
    """
    if config.llm.quantization == "none":
        return {}
    # The frozen weights do not depend on the adapter and the encoder.
    _, _, frozen = state.abstract_model(llama, LoRAConfig(), 1, stored_dtype)
    frozen = sharding.with_sharding(frozen, sharding.shard_params(mesh, frozen))
    stacks = {path: shape for path, shape in flatten_dict(frozen["llm"]).items() if path[-1] == "kernel"}
    for path, shape in stacks.items():
        if shape.shape[1] % BLOCK:
            raise InputError(
                f"{config.llm.path or 'the language model'}: {'/'.join(path)} has {shape.shape[1]} inputs, "
                f"config.llm.quantization=nf4 needs a multiple of {BLOCK}"
            )
    return stacks


def packed_attention(config: ml_collections.ConfigDict, mesh: Mesh, llama: LlamaConfig) -> PackedAttention:
    """Attention of training by the fastest kernel that the mesh's devices have for the model's sizes."""
    platform, kernel = mesh.devices.flat[0].platform, "xla"
    if platform == "tpu" and llama.head_dim % 128 == 0:
        kernel = "splash"
    elif platform == "gpu" and llama.head_dim % 8 == 0 and llama.head_dim <= 128 and config.dtype == "bfloat16":
        kernel = "cudnn"
    return PackedAttention(config.data.row.window, kernel, sharding.heads(mesh, llama.num_kv_heads))


def abstract_experiment(
    config: ml_collections.ConfigDict,
    llama: LlamaConfig,
    mesh: Mesh,
    prompt: Prompt | TypicalPrompt,
    stored_dtype: DTypeLike,
    encoder: AVHubertConfig | None = None,
) -> Experiment:
    """All that shapes tell: enough to compile every program, for devices of any kind. Reads no file.

    `encoder` is the one that is trained, if there is one. Raises InputError for sizes that do not go together.
    """
    lora = LoRAConfig(config.lora.rank, config.lora.alpha, config.lora.dropout)
    to_quantize = stacks_to_quantize(config, llama, mesh, stored_dtype)
    sizes = {
        "llama": llama,
        "lora": lora,
        "feature_width": config.data.feature_width,
        "dtype": jnp.dtype(config.dtype),
        "quantization": config.llm.quantization,
        "attention": packed_attention(config, mesh, llama),
    }
    if encoder is not None:
        c = config.encoder
        on_cpu = mesh.devices.flat[0].platform == "cpu"
        training = EncoderTraining(c.layer_drop, c.activation_dropout, c.batch_norm, unroll=on_cpu)
        sizes |= {"encoder": encoder, "encoder_training": training}
    structure, trainable, frozen = state.abstract_model(**sizes)
    trainable, frozen = (
        sharding.with_sharding(tree, sharding.shard_params(mesh, tree)) for tree in (trainable, frozen)
    )
    batch_stats = {"encoder": frozen.pop("encoder")} if encoder is not None else {}
    build = functools.partial(state.make_model, **sizes)
    return Experiment(
        config, mesh, llama, encoder, structure, trainable, frozen, batch_stats, to_quantize, build, prompt
    )


def load_encoder_config(config: ml_collections.ConfigDict) -> AVHubertConfig | None:
    """The sizes of the encoder that is trained, None if there is none. Raises InputError if they are not usable."""
    if not config.encoder.train:
        return None
    if not config.encoder.path:
        raise InputError("config.encoder.path is not set: expected a folder made by python -m convert.from_fairseq")
    encoder = encoder_folder.read_config(config.encoder.path)
    for what, ours, theirs in (
        ("config.data.feature_width", config.data.feature_width, encoder.embed_dim),
        ("audio features of a frame", AUDIO_DIM, encoder.audio_dim),
    ):
        if ours != theirs:
            raise InputError(f"{config.encoder.path}: its encoder has width {theirs}, expected {ours} ({what})")
    return encoder


def encoder_fits(encoder: AVHubertConfig | None) -> dict[str, Any]:
    """The shape of the encoder that is trained, by names for `Checkpoints.check_fits`; {} if there is none."""
    fields = {} if encoder is None else dataclasses.asdict(encoder)
    # JSON has no tuples.
    return {f"the encoder's {name}": list(x) if isinstance(x, tuple) else x for name, x in fields.items()}


def prompt_fits(prompt: Prompt, end_token: str) -> dict[str, Any]:
    """What text the learnt weights were trained on, by names for `Checkpoints.check_fits`."""
    return {"config.llm.end_token": end_token, "tokenizer and instruction sha256": prompt.sha256()}


def load_experiment(config: ml_collections.ConfigDict) -> Experiment:
    """Reads all that is small and checks it; InputError before anything large is touched."""
    if not config.llm.path:
        raise InputError("config.llm.path is not set: expected a folder made by python -m convert.from_hf")
    conversion = llm_folder.read_conversion(config.llm.path)
    llama = llm_folder.llama_config(config.llm.path)
    prompt = load_prompt(config.llm.path, config.llm.end_token)
    prompt.check_fits(llama.vocab_size)
    encoder, mesh = load_encoder_config(config), sharding.make_mesh(config)
    experiment = abstract_experiment(config, llama, mesh, prompt, jnp.dtype(conversion["dtype"]), encoder)
    fits = {
        "config.encoder.train": config.encoder.train,
        **encoder_fits(encoder),
        "config.lora.rank": config.lora.rank,
        "config.lora.alpha": config.lora.alpha,
        "config.data.feature_width": config.data.feature_width,
        "language model sha256": conversion["sha256"],
        "config.llm.quantization": config.llm.quantization,
        **prompt_fits(prompt, config.llm.end_token),
    }
    return dataclasses.replace(experiment, fits=fits)
