"""Settings of all tests: JAX on the CPU, no silent broadcasting between ranks, one thread for PyTorch."""

import atexit
import gc
import os
import shutil
import signal
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
# Most of the time goes into compiling programs that run once or twice: without LLVM's optimisations and with the older
# of XLA's two code generators, it takes a quarter (encoder training: 48 → 23 s), and a fifth less than that when the
# code is not cut into 32 parts.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
)
# Python reads sitecustomize.py there in every process that is started from here.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [os.path.join(os.path.dirname(__file__), "helpers", "quick_start"), os.environ.get("PYTHONPATH")])
)
# Programs are shared by all processes of the tests, and by nobody else.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "true"
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
if "VIAVSP_TEST_PROGRAMS" not in os.environ:  # the first process; those that it starts inherit it
    os.environ["VIAVSP_TEST_PROGRAMS"] = tempfile.mkdtemp(prefix="viavsp_programs_")
    atexit.register(shutil.rmtree, os.environ["VIAVSP_TEST_PROGRAMS"], ignore_errors=True)
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ["VIAVSP_TEST_PROGRAMS"]
# Where transformers copies the code of exports, in place of the user's own folder; it keeps to the first that it used.
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="viavsp_modules_")
# With AMX, PyTorch 2.13 gets grouped convolutions of few channels a group wrong in bfloat16; real encoders have 64.
os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX512_CORE_BF16"

import hypothesis
import jax
import torch

atexit.register(shutil.rmtree, os.environ["HF_MODULES_CACHE"], ignore_errors=True)
# As sitecustomize.py does in those that are started from here.
gc.set_threshold(200_000, 20, 20)
# Started in the background, or by nohup, the tests would ignore these, and so would all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
# Fixtures; what others import comes first.
pytest_plugins = [
    "small_run",
    "demo_run",
    "ray_cluster",
    "small_disk",
    "small_media",
    "small_shards",
    "tiny_llama",
]

jax.config.update("jax_numpy_rank_promotion", "raise")
torch.set_num_threads(1)
# Compilation makes the first example slow.
hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.load_profile("default")
