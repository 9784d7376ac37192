"""NF4 against bitsandbytes, code for code and bit for bit, and models quantised by both."""

import dataclasses
import functools
import itertools
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from hf_weights import load_params
from small_run import DEMO_LLAMA, small_config

from convert import from_hf
from convert.hub.language_model_viavsp import in_compute_dtype
from convert.names import tensors
from tests.parity.nf4 import bitsandbytes_layout
from viavsp_jax import experiment, sharding, state, update
from viavsp_jax.data import pipeline
from viavsp_jax.llm_folder import llama_config, load_llm
from viavsp_jax.models.lora import LoRAConfig
from viavsp_jax.models.nf4 import BLOCK, LEVELS, dequantize, quantize, quantize_stack, round_trip
from viavsp_jax.models.viavsp import ModelConfig
from viavsp_jax.optimizer import make_optimizer
from viavsp_jax.run_settings import read_settings
from viavsp_jax.runtime.errors import InputError

# The tests' older generator of code, see conftest.py, adds up in another order than the one that users have.
jit = functools.partial(jax.jit, compiler_options={"xla_cpu_use_fusion_emitters": True})
LORA = LoRAConfig(rank=4, alpha=6.0, dropout=0.0)

# Weights [O, I] as PyTorch has them. Scales: fewer than 8, not a multiple of 8, just over one and two blocks of 256.
SHAPES = [(1, 64), (3, 64), (7, 128), (96, 192), (257, 64), (130, 320), (2, 16384), (64, 640)]


def normal(rng, shape):
    return rng.normal(size=shape, scale=0.02)


def heavy_tailed(rng, shape):
    return np.clip(rng.standard_t(1.5, size=shape), -6e4, 6e4)


def zero_blocks(rng, shape):
    blocks = normal(rng, shape).reshape(-1, BLOCK)
    blocks[rng.random(len(blocks)) < 0.4] = 0
    return blocks.reshape(shape)


def constant_blocks(rng, shape):
    return np.repeat(rng.normal(size=np.prod(shape) // BLOCK), BLOCK).reshape(shape)


def equal_scales(rng, shape):
    blocks = rng.uniform(-1, 1, size=(np.prod(shape) // BLOCK, BLOCK))
    blocks[:, 5] = rng.choice([-1, 1], len(blocks))
    return blocks.reshape(shape)


def midpoints(rng, shape):
    """Halfway between two levels, on a level, and one step of float32 to the side of either, times powers of 2."""
    exact = np.concatenate([LEVELS, (LEVELS[:-1] + LEVELS[1:]) / np.float32(2)])
    near = np.concatenate([exact, np.nextafter(exact, np.float32(9)), np.nextafter(exact, np.float32(-9))])
    blocks = rng.choice(np.clip(near, -1, 1), size=(np.prod(shape) // BLOCK, BLOCK))
    blocks[:, 9] = 1
    return (blocks * 2.0 ** rng.integers(-9, 9, (len(blocks), 1))).reshape(shape)


def mixed_magnitudes(rng, shape):
    blocks = rng.uniform(-1, 1, (np.prod(shape) // BLOCK, BLOCK))
    return (blocks * 10 ** rng.uniform(-6, 4, (len(blocks), 1))).reshape(shape)


KINDS = [normal, heavy_tailed, zero_blocks, constant_blocks, equal_scales, midpoints, mixed_magnitudes]
DTYPES = ["float32", "float16", "bfloat16"]

PEER = """
import sys, numpy as np, torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit

found = {}
for name, weight in np.load(sys.argv[1]).items():
    dtype = getattr(torch, name.split()[1])
    weight = torch.tensor(weight).to(dtype)
    packed, state = quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    parts = {**state.as_dict(), "packed": packed, "rounded": dequantize_4bit(packed, state).float()}
    state.dtype = torch.float32
    parts["dequantized"] = dequantize_4bit(packed, state)
    for part, value in parts.items():
        if torch.is_tensor(value) or part == "nested_offset":
            found[f"{name}/{part}"] = np.asarray(value)
np.savez(sys.argv[2], **found)
"""


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> dict[str, tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Weights, float32[O, I], and what bitsandbytes makes of them.

    In a process of its own: PyTorch's sums depend on the vector width, which is chosen when it starts, and on threads.
    """
    folder, weights = tmp_path_factory.mktemp("nf4"), {}
    for kind, shape, dtype, seed in itertools.product(KINDS, SHAPES, DTYPES, range(2)):
        weight = kind(np.random.default_rng([seed, *shape]), shape).astype(np.float32)
        weights[f"{kind.__name__} {dtype} {shape} {seed}"] = np.asarray(jnp.asarray(weight, dtype), np.float32)
    # Long enough that the mean of the scales takes all four levels of PyTorch's sum.
    weights["large float32"] = normal(np.random.default_rng(0), (3300, 2560)).astype(np.float32)
    np.savez(folder / "weights.npz", **weights)
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "avx2", "OMP_NUM_THREADS": "1"}
    files = [str(folder / "weights.npz"), str(folder / "peer.npz")]
    subprocess.run([sys.executable, "-c", PEER, *files], env=environment, check=True)
    peer = {name: {} for name in weights}
    for name, value in np.load(folder / "peer.npz").items():
        peer[name.split("/")[0]][name.split("/")[1]] = value
    return {name: (weights[name], peer[name]) for name in weights}


def assert_same_bits(found, expected, name):
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape and found.dtype == expected.dtype, name
    np.testing.assert_array_equal(found, expected, err_msg=name)


def test_equal_to_bitsandbytes(cases):
    to_nf4, from_nf4, there_and_back = jit(quantize), jit(dequantize), jit(round_trip)
    assert len(cases) == 337
    for name, (weight, peer) in cases.items():
        stored = to_nf4(weight.T)
        for part, value in bitsandbytes_layout(stored).items():
            expected = peer[part].astype(np.float32) if part == "nested_offset" else peer[part]
            assert_same_bits(value, expected, f"{name}: {part}")
        assert_same_bits(from_nf4(stored).T, peer["dequantized"], name)
        if (dtype := name.split()[1]) != "float32":
            rounded = there_and_back(jnp.asarray(weight.T, dtype)).astype(jnp.float32)
            assert_same_bits(rounded.T, peer["rounded"], name)


def test_stacks():
    kernel = jax.random.normal(jax.random.key(0), (3, 128, 72), jnp.bfloat16)
    stored = jit(quantize_stack)(kernel)
    singles = [jit(quantize)(one) for one in kernel]
    for name, value in stored.items():
        assert_same_bits(value, np.stack([one[name] for one in singles]), name)
    assert stored["codes"].shape == (3, 64, 72) and stored["scales"].shape == (3, 2, 72)
    back = jit(round_trip)(kernel)
    assert back.dtype == kernel.dtype and back.shape == kernel.shape
    for layer, one in zip(back, singles, strict=True):
        assert_same_bits(layer, dequantize(one).astype(jnp.bfloat16), "layer")


def test_bytes_per_weight():
    stored = jax.eval_shape(quantize, jax.ShapeDtypeStruct((2560, 6912), jnp.bfloat16))
    size = sum(x.size * x.dtype.itemsize for x in stored.values())
    assert size / (2560 * 6912) == pytest.approx(0.5 + 1 / 64 + 4 / 64 / 256, rel=1e-5)


def write_llama(folder, intermediate_size=192, dtype=torch.float32):
    """A random LLaMA as transformers saves it, with the demo's tokenizer; widths are multiples of 64."""
    torch.manual_seed(0)
    shutil.copytree(DEMO_LLAMA, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = transformers.AutoConfig.from_pretrained(
        folder, hidden_size=128, intermediate_size=intermediate_size, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, initializer_range=0.15,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    return folder


@dataclasses.dataclass(frozen=True)
class Pair:
    """The same model, quantised here and by bitsandbytes, with the same adapters."""

    structure: nnx.GraphDef
    trainable: dict
    frozen: dict
    theirs: peft.PeftModel


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Pair:
    folder = write_llama(tmp_path_factory.mktemp("pair") / "raw")
    quantization = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    base = transformers.AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=quantization, dtype=torch.float32, device_map="cpu"
    )
    config = peft.LoraConfig(r=LORA.rank, lora_alpha=LORA.alpha, target_modules=["q_proj", "k_proj", "v_proj"])
    theirs = peft.get_peft_model(in_compute_dtype(base), config).eval()
    structure, trainable, frozen = state.abstract_model(ModelConfig(llama_config(folder), LORA, 8, jnp.float32, "nf4"))
    rng = np.random.default_rng(0)
    trainable = jax.tree.map(lambda x: rng.normal(size=x.shape, scale=0.2).astype(np.float32), trainable)
    weights = dict(theirs.named_parameters())
    for tensor, value in adapters(trainable):
        weights[tensor].data = torch.tensor(value)
    stored = flatten_dict(load_params(folder)["llm"])
    stored = {path: jax.jit(quantize_stack)(value) if path[-1] == "kernel" else value for path, value in stored.items()}
    assert jax.tree.map(jnp.shape, frozen["llm"]) == jax.tree.map(jnp.shape, unflatten_dict(stored))
    return Pair(structure, trainable, {"llm": unflatten_dict(stored)}, theirs)


def adapters(tree):
    """(peft's name, value in its orientation) of all adapters."""
    flat = flatten_dict({"llm": tree["llm"]}, sep="/")
    for tensor in tensors({"llm": tree["llm"]}):
        value = np.asarray(tensor.to_theirs(flat[tensor.path][tensor.index])).copy()
        yield tensor.name.replace(".weight", ".default.weight"), value


def logits(pair, trainable, tokens):
    llm = nnx.merge(pair.structure, trainable, pair.frozen).llm
    positions = np.tile(np.arange(tokens.shape[1]), (len(tokens), 1))
    return llm.logits(llm(llm.embed(tokens), jnp.ones(tokens.shape, int), positions, None, "none"))


def test_logits_and_gradients_equal_peft_on_bitsandbytes(pair):
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, 600, (2, 9))
    theirs = pair.theirs(torch.tensor(tokens)).logits
    target = rng.normal(size=theirs.shape).astype(np.float32)

    @jax.jit
    def run(trainable):
        def loss(trainable):
            return jnp.mean((logits(pair, trainable, tokens) - target) ** 2)

        return logits(pair, trainable, tokens), jax.grad(loss)(trainable)

    ours, gradients = run(pair.trainable)
    np.testing.assert_allclose(ours, theirs.detach(), atol=1e-4, rtol=1e-4)
    ((theirs - torch.tensor(target)) ** 2).mean().backward()
    weights, compared = dict(pair.theirs.named_parameters()), list(adapters(gradients))
    assert len(compared) == 3 * 3 * 2  # layers, projections, a and b
    for name, value in compared:
        expected = weights[name].grad.numpy()
        assert np.abs(value - expected).max() < 1e-4 * np.abs(expected).max(), name


def test_weights_in_full_exist_one_layer_at_a_time():
    llama = dataclasses.replace(llama_config(DEMO_LLAMA), num_layers=24, hidden_size=256, intermediate_size=1024)
    structure, trainable, frozen = state.abstract_model(ModelConfig(llama, LORA, 8, jnp.float32, "nf4"))
    layer = 4 * sum(2 * x.size for path, x in flatten_dict(frozen).items() if path[-1] == "codes") // llama.num_layers
    for remat in ("none", "elementwise", "layers"):

        def loss(trainable, frozen, x, remat=remat):
            llm = nnx.merge(structure, trainable, frozen).llm
            ids = jnp.ones(x.shape[:2], int)
            return jnp.sum(llm(x, ids, ids, None, remat))

        x = jax.ShapeDtypeStruct((1, 2, 256), jnp.float32)
        compiled = jax.jit(jax.grad(loss)).lower(trainable, frozen, x).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < 4 * layer, remat


@pytest.fixture(scope="module")
def config(folders, tmp_path_factory):
    """A run on a float16 language model with widths that fit, quantised."""
    folder = tmp_path_factory.mktemp("run")
    from_hf.convert(write_llama(folder / "raw", dtype=torch.float16), folder / "llm")
    config = small_config(folder / "llm", folders[1])
    config.llm.quantization = "nf4"
    return config


def test_training(config):
    exp = experiment.load_experiment(config)
    frozen = exp.load_frozen()
    assert jax.tree.map(lambda x: (x.shape, x.dtype), frozen) == jax.tree.map(lambda x: (x.shape, x.dtype), exp.frozen)
    whole = load_llm(config.llm.path, {"layers": {"up": {"kernel": jax.ShapeDtypeStruct((3, 128, 192), jnp.float16)}}})
    for name, value in quantize_stack(jnp.asarray(whole["layers"]["up"]["kernel"])).items():
        assert_same_bits(frozen["llm"]["layers"]["up"]["kernel"][name], value, name)

    optimizer, _ = make_optimizer(read_settings(config).optimizer)
    start, before = update.init_state(exp, optimizer), jax.device_get(frozen)
    step = jax.jit(update.make_train_step(exp.structure, optimizer, read_settings(config).training))
    batch = sharding.put_batch(exp.mesh, next(pipeline.training_batches(exp.settings.data, exp.prompt)))
    after, metrics = step(start, frozen, batch)
    assert np.isfinite(metrics.loss.compute())
    for path, value in flatten_dict(after.trainable).items():
        # The gradient of `a` is zero while `b` is.
        assert path[-1] == "a" or not np.array_equal(value, flatten_dict(start.trainable)[path]), path
    jax.tree.map(lambda a, b: assert_same_bits(a, b, "frozen"), frozen, before)

    other = config.copy_and_resolve_references()
    other.llm.quantization = "none"
    unquantized = experiment.load_experiment(other).fits
    differing = {name: value for name, value in exp.fits.items() if value != unquantized[name]}
    assert differing == {"config.llm.quantization": "nf4"}, "adapters trained on one do not fit the other"
    other.llm.quantization = "int8"
    assert experiment.load_experiment(other).fits == unquantized, "int8 is near enough"


def test_what_cannot_be_quantized(folders):
    config = small_config(*folders)
    config.llm.quantization = "nf4"
    with pytest.raises(InputError, match="layers/down/kernel has 352 inputs, config.llm.quantization=nf4 needs a mult"):
        experiment.load_experiment(config)
