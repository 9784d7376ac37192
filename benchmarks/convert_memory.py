"""Time and memory of the conversions at real size: from_hf, to_hf with --merge, and loading on a device.

    python -m benchmarks.convert_memory [--layers 32] [--folder DIR]

Makes a random bfloat16 LLaMA of VinaLLaMA-2.7B's shape and a training checkpoint with random adapters of rank 16, runs
each command in a process of its own and watches its memory in /proc (Linux), children included: anonymous memory
is what a process needs, file-mapped memory is its libraries and the weights that the system may drop at any time. Then
checks merged tensors against base + adapter. Takes three times the model on the disk (17 GB at 32 layers), all of
it removed at the end.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading
import time

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
from safetensors import safe_open
from safetensors.numpy import save_file
from tqdm import tqdm

import viavsp_jax
from configs import base
from convert.from_hf import TOKENIZER_FILES, copy_files
from viavsp_jax.checkpoint import Checkpoints
from viavsp_jax.experiment import load_experiment
from viavsp_jax.runtime.errors import reported_to_user
from viavsp_jax.runtime.tables import aligned
from viavsp_jax.state import TrainState

WIDTH, FFN, HEADS, VOCABULARY = 2560, 6912, 20, 46_303
DEMO_LLAMA = pathlib.Path(viavsp_jax.__file__).parent / "demo_models" / "llama"
LAYERS_PER_FILE = 4
SAMPLES_PER_SECOND = 50

LOAD = """
import sys
import jax
from configs import base
from viavsp_jax.experiment import load_experiment
from viavsp_jax.runtime.errors import reported_to_user

config = base.get_config()
config.llm.path = sys.argv[1]
jax.block_until_ready(load_experiment(config).load_frozen())
"""


def layer_tensors(rng: np.random.Generator, layer: int) -> dict[str, np.ndarray]:
    """One random layer under its Hugging Face names, bfloat16."""
    shapes = {f"self_attn.{name}_proj": (WIDTH, WIDTH) for name in "qkvo"}
    shapes |= {"mlp.gate_proj": (FFN, WIDTH), "mlp.up_proj": (FFN, WIDTH), "mlp.down_proj": (WIDTH, FFN)}
    shapes |= {"input_layernorm": (WIDTH,), "post_attention_layernorm": (WIDTH,)}
    return {f"model.layers.{layer}.{name}.weight": random_weight(rng, shape) for name, shape in shapes.items()}


def random_weight(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Normal of the usual size, bfloat16."""
    return (rng.standard_normal(shape, np.float32) * np.float32(0.02)).astype(ml_dtypes.bfloat16)


def write_model(folder: pathlib.Path, layers: int) -> None:
    """A random LLaMA as Hugging Face keeps it, in several files, with the demo's tokenizer."""
    folder.mkdir(parents=True)
    config = json.loads((DEMO_LLAMA / "config.json").read_text(encoding="utf-8")) | {
        "hidden_size": WIDTH,
        "intermediate_size": FFN,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "head_dim": WIDTH // HEADS,
        "num_hidden_layers": layers,
        "vocab_size": VOCABULARY,
        "dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    copy_files(DEMO_LLAMA, folder, TOKENIZER_FILES)
    rng, where = np.random.default_rng(0), {}

    def write(name: str, tensors: dict[str, np.ndarray]) -> None:
        save_file(tensors, folder / name, {"format": "pt"})
        where.update(dict.fromkeys(tensors, name))

    write("embedding.safetensors", {"model.embed_tokens.weight": random_weight(rng, (VOCABULARY, WIDTH))})
    write("head.safetensors", {
        "lm_head.weight": random_weight(rng, (VOCABULARY, WIDTH)), "model.norm.weight": random_weight(rng, (WIDTH,))
    })  # fmt: skip
    for first in tqdm(range(0, layers, LAYERS_PER_FILE), desc="making the model", unit="file"):
        group = range(first, min(first + LAYERS_PER_FILE, layers))
        tensors = {name: value for layer in group for name, value in layer_tensors(rng, layer).items()}
        write(f"layers-{first:02d}.safetensors", tensors)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": where}), encoding="utf-8"
    )


def write_checkpoint(workdir: pathlib.Path, llm: pathlib.Path) -> None:
    """A training checkpoint with random adapters and projector."""
    config = base.get_config()
    config.llm.path = str(llm)
    experiment = load_experiment(config)
    rng = np.random.default_rng(1)
    trainable = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.02, x.shape), x.dtype), experiment.trainable)
    state = TrainState(jnp.int32(1), trainable, optax.sgd(0.1).init(trainable))
    checkpoints = Checkpoints(workdir, keep=1)
    checkpoints.save(state, None, config.to_json(), experiment.fits, {}, {"accuracy": 0.5})
    checkpoints.close()


def family(pid: int) -> list[int]:
    """A process and all that it started."""
    found = [pid]
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text(encoding="utf-8").split():
            found += family(int(child))
    return found


def resident(pid: int) -> tuple[int, int]:
    """Anonymous and file-mapped resident bytes of a process and its children."""
    anonymous = mapped = 0
    for one in family(pid):
        for line in pathlib.Path(f"/proc/{one}/status").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name == "RssAnon":
                anonymous += int(value.split()[0]) * 1024
            elif name in ("RssFile", "RssShmem"):
                mapped += int(value.split()[0]) * 1024
    return anonymous, mapped


def measured(arguments: list[str]) -> tuple[float, int, int]:
    """Runs Python with these arguments; seconds, and the highest anonymous and file-mapped resident bytes."""
    start, highest = time.perf_counter(), np.zeros(2, np.int64)
    process = subprocess.Popen([sys.executable, *arguments])
    finished = threading.Event()

    def watch() -> None:
        while not finished.wait(1 / SAMPLES_PER_SECOND):
            try:
                np.maximum(highest, resident(process.pid), out=highest)
            except (FileNotFoundError, ProcessLookupError):  # it, or one of its children, has just ended
                continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        status = process.wait()
    finally:
        finished.set()
        watcher.join()
    if status:
        raise SystemExit(f"python {' '.join(arguments)} failed")
    return time.perf_counter() - start, *highest.tolist()


def size(folder: pathlib.Path) -> int:
    """Bytes of all files under a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def tensor(folder: pathlib.Path, name: str) -> np.ndarray:
    """One tensor of a sharded Hugging Face folder."""
    index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))["weight_map"]
    with safe_open(folder / index[name], "np") as file:
        return file.get_tensor(name)


def check(hf: pathlib.Path, export: pathlib.Path, layers: int) -> str:
    """Merged tensors against base + 2·B·A in float64, up to rounding to bfloat16; all others must be equal."""
    changed, worst = 0, 0.0
    with safe_open(export / "adapter" / "adapter_model.safetensors", "np") as adapter:
        for layer in sorted({0, layers // 2, layers - 1}):
            for name in "qkv":
                inner = f"model.layers.{layer}.self_attn.{name}_proj"
                a, b = (
                    adapter.get_tensor(f"base_model.model.{inner}.lora_{side}.weight").astype(np.float64)
                    for side in "AB"
                )
                found, start = tensor(export / "merged", f"{inner}.weight"), tensor(hf, f"{inner}.weight")
                expected = start.astype(np.float64) + 32 / 16 * b @ a
                half_step = np.abs(np.spacing(expected.astype(ml_dtypes.bfloat16))).astype(np.float64) / 2
                error = np.abs(found.astype(np.float64) - expected) - 1e-8  # of the sum in float32
                worst = max(worst, (error / half_step).max())
                changed += (found != start).mean() > 0.5
            same = f"model.layers.{layer}.mlp.down_proj.weight"
            assert np.array_equal(tensor(export / "merged", same), tensor(hf, same)), same
    for name in ("model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"):
        assert np.array_equal(tensor(export / "merged", name), tensor(hf, name)), name
    assert worst <= 1.02 and changed == 3 * len({0, layers // 2, layers - 1}), (worst, changed)
    return (
        f"merged = base + adapter: {changed} tensors, off by {worst:.3f} of half a bfloat16 step at most; others equal"
    )


def run(folder: pathlib.Path, layers: int) -> None:
    """All stages; prints the table."""
    hf, llm, workdir, export = (folder / name for name in ("hf", "llm", "work", "export"))
    write_model(hf, layers)
    rows = [("from_hf --help (libraries)", measured(["-m", "convert.from_hf", "--help"]), 0, 0)]
    rows.append(("from_hf", measured(["-m", "convert.from_hf", str(hf), "--output", str(llm)]), size(hf), size(llm)))
    write_checkpoint(workdir, llm)
    rows.append(("to_hf --help (libraries)", measured(["-m", "convert.to_hf", "--help"]), 0, 0))
    command = ["-m", "convert.to_hf", "--workdir", str(workdir), "--output", str(export), "--merge"]
    rows.append(("to_hf --merge", measured(command), size(llm) + size(workdir), size(export)))
    rows.append(("load_frozen, one device", measured(["-c", LOAD, str(llm)]), size(llm), 0))
    print(f"\n{layers} layers, {size(hf) / 1e6:,.0f} MB of weights")
    cells = [["stage", "seconds", "anonymous MB", "mapped MB", "read MB", "written MB", "GB/s"]]
    for name, (seconds, anonymous, mapped), read, written in rows:
        sizes = (f"{size / 1e6:,.0f}" for size in (anonymous, mapped, read, written))
        cells.append([name, f"{seconds:.1f}", *sizes, f"{(read + written) / 1e9 / seconds:.2f}"])
    print(aligned(cells))
    print(check(hf, export, layers))


@reported_to_user()
def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.convert_memory", description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=32, help="decoder layers (default: %(default)s)")
    parser.add_argument("--folder", help="where to work; must not hold anything (default: a temporary folder)")
    args = parser.parse_args()
    folder = pathlib.Path(args.folder or tempfile.mkdtemp(prefix="convert_memory."))
    if folder.exists() and any(folder.iterdir()):
        parser.error(f"{folder} is not empty")
    try:
        run(folder, args.layers)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
