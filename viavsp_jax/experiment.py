"""What training and evaluation share: a config turned into mesh, prompt, model structure and weights."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx
from jax.sharding import Mesh

from viavsp_jax import checkpoint, sharding, state
from viavsp_jax.data.prompt import Prompt, load_prompt
from viavsp_jax.errors import InputError
from viavsp_jax.models.lora import LoRAConfig
from viavsp_jax.models.viavsp import ViAVSP

Tree = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A config at work. Weights are shapes with shardings until they are asked for."""

    config: ml_collections.ConfigDict
    mesh: Mesh
    prompt: Prompt
    structure: nnx.GraphDef
    trainable: Tree  # jax.ShapeDtypeStruct
    frozen: Tree  # jax.ShapeDtypeStruct
    fits: dict[str, Any]  # what learnt weights fit, see Checkpoints.save
    build: Callable[[jax.Array], ViAVSP]  # from a PRNG key

    def init_trainable(self) -> Tree:
        """New adapters and projector from `config.seed`; the frozen weights are never made."""

        def init(key):
            return state.split(self.build(key))[1]

        shardings = jax.tree.map(lambda x: x.sharding, self.trainable)
        return jax.jit(init, out_shardings=shardings)(jax.random.key(self.config.seed))

    def load_frozen(self) -> Tree:
        """The frozen language model, straight to its devices."""
        return {"llm": checkpoint.load_llm(self.config.llm.path, self.frozen["llm"])}


def load_experiment(config: ml_collections.ConfigDict) -> Experiment:
    """Reads all that is small and checks it; InputError before anything large is touched."""
    if not config.llm.path:
        raise InputError("config.llm.path is not set: expected a folder made by python -m convert.from_hf")
    conversion = checkpoint.read_conversion(config.llm.path)
    llama = checkpoint.llama_config(config.llm.path)
    prompt = load_prompt(config.llm.path, config.llm.end_token)
    mesh = sharding.make_mesh(config)
    lora = LoRAConfig(config.lora.rank, config.lora.alpha, config.lora.dropout)
    sizes = {"llama": llama, "lora": lora, "feature_width": config.data.feature_width, "dtype": jnp.dtype(config.dtype)}
    structure, trainable, frozen = state.abstract_model(**sizes)
    trainable, frozen = (
        sharding.with_sharding(tree, sharding.shard_params(mesh, tree)) for tree in (trainable, frozen)
    )
    fits = {
        "config.lora.rank": lora.rank,
        "config.lora.alpha": lora.alpha,
        "config.data.feature_width": config.data.feature_width,
        "language model sha256": conversion["sha256"],
    }
    build = functools.partial(state.make_model, **sizes)
    return Experiment(config, mesh, prompt, structure, trainable, frozen, fits, build)
