"""One random model on both sides: here, and the same weights in transformers and peft.

Weights are made on the device and handed over there (DLPack), so that no host needs to hold them.
"""

import argparse
import dataclasses
import functools
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import peft
import torch
import transformers
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from benchmarks.vasr_clips import draw_clips, make_prompt, write_shards
from configs import base, final
from convert.names import tensors
from viavsp_jax import experiment, run_settings, sharding, state
from viavsp_jax.data.examples import Example
from viavsp_jax.experiment import Experiment
from viavsp_jax.models.llama import LlamaConfig
from viavsp_jax.models.viavsp import ViAVSP
from viavsp_jax.rules import DTYPES

Tree = dict[str, Any]

# Leaves PyTorch its part of a GPU; read when JAX looks for devices.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

VINALLAMA = LlamaConfig(
    vocab_size=46_306,
    hidden_size=2560,
    intermediate_size=6912,
    num_layers=32,
    num_heads=20,
    num_kv_heads=20,
    head_dim=128,
    rope_theta=10_000.0,
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
)
# About 100 million parameters, with VinaLLaMA's vocabulary.
SMALL = dataclasses.replace(
    VINALLAMA, hidden_size=640, intermediate_size=1728, num_layers=10, num_heads=10, num_kv_heads=10, head_dim=64
)


@dataclasses.dataclass(frozen=True)
class RandomModel:
    """This project's side."""

    experiment: Experiment
    trainable: Tree
    frozen: Tree


@dataclasses.dataclass(frozen=True)
class TorchModel:
    """The same model in PyTorch: adapters by peft, `projector` beside it; they learn, the rest is frozen."""

    llm: peft.PeftModel
    projector: torch.nn.Linear

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.projector.weight.device

    @property
    def learnt(self) -> list[torch.nn.Parameter]:
        """What an update changes."""
        return [weight for part in (self.llm, self.projector) for weight in part.parameters() if weight.requires_grad]


def add_size_flags(parser: argparse.ArgumentParser, default: LlamaConfig) -> None:
    """The flags of `sizes`, and the dtype of `prepare`."""
    parser.add_argument("--dtype", choices=DTYPES, help="default: float32 on a CPU, elsewhere bfloat16")
    for flag, value in (
        ("layers", default.num_layers),
        ("heads", default.num_heads),
        ("head_width", default.head_dim),
        ("ffn", default.intermediate_size),
        ("vocabulary", default.vocab_size),
        ("feature_width", base.get_config().data.feature_width),
    ):
        parser.add_argument(f"--{flag}", type=int, default=value, help="default: %(default)s")


def sizes(args: argparse.Namespace) -> LlamaConfig:
    """The language model that the flags ask for."""
    return dataclasses.replace(
        VINALLAMA,
        hidden_size=args.heads * args.head_width,
        intermediate_size=args.ffn,
        num_layers=args.layers,
        num_heads=args.heads,
        num_kv_heads=args.heads,
        head_dim=args.head_width,
        vocab_size=args.vocabulary,
    )


def compute_dtype() -> str:
    """What the machine is fast at."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def make_model(llama: LlamaConfig, **changes: Any) -> RandomModel:
    """A random model under configs/base.py with the rows of configs/final.py.

    Args:
      llama: its size.
      **changes: of the config, dotted names.
    """
    config = base.get_config()
    config.data.row = final.get_config().data.row
    config.update_from_flattened_dict(changes)
    settings = run_settings.read_settings(config)
    mesh = sharding.make_mesh(settings.mesh)
    prompt, dtype = make_prompt(llama.vocab_size), jnp.dtype(settings.dtype)
    instruction = len(prompt.instruction("vi", "vi"))
    made = experiment.abstract_experiment(settings, llama, mesh, dtype, instruction)
    made = dataclasses.replace(made, prompt=prompt)
    shardings = jax.tree.map(lambda x: x.sharding, (made.trainable, made.frozen))

    @functools.partial(jax.jit, out_shardings=shardings)
    def weights(key):
        _, trainable, frozen = state.split(ViAVSP(made.model, nnx.Rngs(params=key)))
        return with_adapters(trainable, key), frozen

    # Threefry takes seconds to compile.
    return RandomModel(made, *weights(jax.random.key(config.seed, impl="rbg")))


def prepare(
    folder: pathlib.Path, args: argparse.Namespace, splits: dict[str, int], **settings: Any
) -> tuple[RandomModel, list[Example]]:
    """Shards in `folder` and the model that the flags ask for.

    Args:
      folder: an empty one.
      args: with the flags of `add_size_flags`.
      splits: how many of the clips each has, the first ones.
      **settings: of the config, dotted names.

    Returns the model and all clips.
    """
    llama = sizes(args)
    clips = draw_clips(max(splits.values()), args.feature_width, llama.vocab_size)
    write_shards(folder, {split: clips[:count] for split, count in splits.items()})
    settings |= {"data.path": str(folder), "data.feature_width": args.feature_width}
    return make_model(llama, dtype=args.dtype or compute_dtype(), **settings), clips


def with_adapters(trainable: Tree, key: jax.Array) -> Tree:
    """Adapters that change something: `b` is zero in a new one."""
    flat = flatten_dict(trainable)
    for number, (path, value) in enumerate(flat.items()):
        if path[-1] == "b":
            flat[path] = 0.05 * jax.random.normal(jax.random.fold_in(key, number), value.shape)
    return unflatten_dict(flat)


def named_tensors(weights: Tree) -> dict[str, torch.Tensor]:
    """All weights under their Hugging Face names, on the device they are on."""
    flat = flatten_dict(weights, sep="/")
    return {
        tensor.name: torch.from_dlpack(tensor.to_theirs(flat[tensor.path][tensor.index])) for tensor in tensors(weights)
    }


def to_torch(model: RandomModel) -> TorchModel:
    """The same weights in PyTorch, on the same device."""
    llama, settings = model.experiment.model.llama, model.experiment.settings
    device = torch.from_dlpack(jax.tree.leaves(model.frozen)[0]).device
    hugging_face = transformers.LlamaConfig(
        vocab_size=llama.vocab_size,
        hidden_size=llama.hidden_size,
        intermediate_size=llama.intermediate_size,
        num_hidden_layers=llama.num_layers,
        num_attention_heads=llama.num_heads,
        num_key_value_heads=llama.num_kv_heads,
        head_dim=llama.head_dim,
        rms_norm_eps=llama.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": llama.rope_theta},
    )
    with device:
        llm = transformers.AutoModelForCausalLM.from_config(
            hugging_face, dtype=getattr(torch, settings.dtype), attn_implementation="sdpa"
        )
        projector = torch.nn.Linear(settings.data.feature_width, llama.hidden_size)
    llm.load_state_dict(named_tensors(model.frozen))
    adapter = peft.LoraConfig(
        r=settings.lora.rank,
        lora_alpha=settings.lora.alpha,
        lora_dropout=settings.lora.dropout,
        target_modules=["q_proj", "k_proj", "v_proj"],
        task_type="CAUSAL_LM",
    )
    llm = peft.get_peft_model(llm, adapter)
    found = peft.set_peft_model_state_dict(llm, named_tensors({"llm": model.trainable["llm"]}))
    assert not found.unexpected_keys and not any("lora" in name for name in found.missing_keys), found
    learnt = named_tensors({"projector": model.trainable["projector"]})
    projector.load_state_dict({name.removeprefix("avfeat_to_llm."): value for name, value in learnt.items()})
    return TorchModel(llm, projector)
