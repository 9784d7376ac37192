"""Settings of all tests: JAX on the CPU, no silent broadcasting between ranks, one thread for PyTorch."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
# Most of the time goes into compiling programs that run once or twice: 183 → 124 s for three files of tests.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # nothing is left in the user's folders, nor taken from there
# With AMX, PyTorch 2.13 gets grouped convolutions of few channels a group wrong in bfloat16; real encoders have 64.
os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX512_CORE_BF16"

import hypothesis
import jax
import torch
from demo_run import demo_clips, demo_export, demo_folder  # noqa: F401  fixtures
from small_media import media_folders  # noqa: F401  fixture
from small_run import folders  # noqa: F401  fixture
from small_shards import prepared  # noqa: F401  fixture
from tiny_llama import export, llm, raw, trained  # noqa: F401  fixtures

jax.config.update("jax_numpy_rank_promotion", "raise")
torch.set_num_threads(1)
# Compilation makes the first example slow.
hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.load_profile("default")
