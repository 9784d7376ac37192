"""Start-up: from the start of a process to the end of its first update, and how compilation grows with the layers.

    python -m benchmarks.startup [--layers 2 8 32] [--rounds 3] [--output FILE.json]

First table, each start in a process of its own: ours (configs/demo.py, the demo's language model, shards of random
features), with the compiled programs that an earlier start left in JAX's compilation cache and without; and the same
model in PyTorch by transformers and peft, 8 clips one after the other, then one update of Adam, as the reference's
accumulation does it (fairseq, which the reference needs too, is not started). Second table: the time to trace and
compile that training step, by the number of layers; `unrolled` is the same code with the scan over layers unrolled.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable

from tqdm import tqdm

import viavsp_jax
from benchmarks.rounds import Comparison, add_flags, compare, report
from benchmarks.vasr_clips import draw_clips, write_shards
from configs import demo
from convert import from_hf
from viavsp_jax.runtime.errors import reported_to_user

ROOT = pathlib.Path(__file__).parents[1]
DEMO_LLAMA = pathlib.Path(viavsp_jax.__file__).parent / "demo_models" / "llama"
CLIPS = 64
WORDS = 500  # numbers in the random transcripts stay below this

OURS = """
import sys
import jax
from configs import demo
from viavsp_jax import sharding, update
from viavsp_jax.runtime.compilation_cache import keep_programs
from viavsp_jax.data.pipeline import training_batches
from viavsp_jax.experiment import load_experiment
from viavsp_jax.optimizer import make_optimizer

llm, shards, workdir = sys.argv[1:]
config = demo.get_config()
config.llm.path, config.data.path, config.data.train = llm, shards, ("av_clean",)
keep_programs(workdir)
experiment = load_experiment(config)
batches = training_batches(experiment.settings.data, experiment.prompt)
optimizer, _ = make_optimizer(experiment.settings.optimizer)
state, frozen = update.init_state(experiment, optimizer), experiment.load_frozen()
batch = sharding.put_batch(experiment.mesh, next(batches))
jax.block_until_ready(update.jit_train_step(experiment, optimizer)(state, frozen, batch))
batches.close()
"""

THEIRS = """
import sys
import peft
import torch
import transformers

folder, width = sys.argv[1], int(sys.argv[2])
device = "cuda" if torch.cuda.is_available() else "cpu"
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
llm = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device)
adapter = peft.LoraConfig(
    r=16, lora_alpha=32, lora_dropout=0.05, target_modules=["q_proj", "k_proj", "v_proj"], task_type="CAUSAL_LM"
)
llm = peft.get_peft_model(llm, adapter)
projector = torch.nn.Linear(width, llm.config.hidden_size, device=device)
learnt = [*projector.parameters(), *(weight for weight in llm.parameters() if weight.requires_grad)]
optimizer = torch.optim.Adam(learnt, lr=5e-4, betas=(0.9, 0.98))
text = tokenizer("Hãy nhận diện câu tiếng Việt này. Đầu vào: ", return_tensors="pt").input_ids.to(device)
label = tokenizer("hôm nay trời đẹp quá", return_tensors="pt").input_ids.to(device)
embed = llm.get_input_embeddings()
for _ in range(8):
    means = torch.stack([run.mean(0) for run in torch.randn(76, width, device=device).split(2)])[None]
    inputs = torch.cat([embed(text), projector(means), embed(label)], 1)
    targets = torch.cat([label.new_full((1, inputs.shape[1] - label.shape[1]), -100), label], 1)
    (llm(inputs_embeds=inputs, labels=targets).loss / 8).backward()
optimizer.step()
if device == "cuda":
    torch.cuda.synchronize()
"""

COMPILE = """
import dataclasses
import functools
import sys
import time
import jax
import jax.numpy as jnp
from configs import demo
from viavsp_jax import llm_folder, sharding, update
from viavsp_jax.aot.typical_clips import INSTRUCTION_TOKENS
from viavsp_jax.data.packing import empty_row, stack_rows
from viavsp_jax.experiment import abstract_experiment
from viavsp_jax.run_settings import read_settings
from viavsp_jax.optimizer import make_optimizer

llm, layers, unrolled = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "unrolled"
if unrolled:
    jax.lax.scan = functools.partial(jax.lax.scan, unroll=True)
config = demo.get_config()
llama = dataclasses.replace(llm_folder.llama_config(llm), num_layers=layers)
settings = read_settings(config)
experiment = abstract_experiment(settings, llama, sharding.make_mesh(settings.mesh), jnp.float32, INSTRUCTION_TOKENS)
row = empty_row(settings.data.row, settings.data.feature_width, jnp.float32)
batch = sharding.put_batch(experiment.mesh, stack_rows([row] * settings.data.rows))
optimizer, _ = make_optimizer(experiment.settings.optimizer)
state = update.abstract_state(experiment, optimizer)
start = time.perf_counter()
update.jit_train_step(experiment, optimizer).lower(state, experiment.frozen, batch).compile()
print(time.perf_counter() - start)
"""


def python(script: str, *arguments: object, cache: str = "") -> str:
    """Runs a script in a process of its own, with a folder for compiled programs or none; what it printed.

    Raises SystemExit if it fails.
    """
    kept = {"JAX_ENABLE_COMPILATION_CACHE": "true" if cache else "false", "JAX_COMPILATION_CACHE_DIR": cache}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | kept, capture_output=True, encoding="utf-8", errors="replace"
    )
    if done.returncode:
        raise SystemExit(f"a start failed:\n{done.stderr}")
    return done.stdout


def starts(folder: pathlib.Path) -> dict[str, Callable[[], int]]:
    """Whole processes, from their start to their end after one update; what they need is written to `folder`."""
    width, llm, shards = demo.get_config().data.feature_width, folder / "llm", folder / "shards"
    from_hf.convert(DEMO_LLAMA, llm, dtype="float32")
    write_shards(shards, {"train": draw_clips(CLIPS, width, WORDS)})

    def ours(programs: pathlib.Path) -> int:
        python(OURS, llm, shards, folder / "work", cache=str(programs))
        return 1

    def first() -> int:
        with tempfile.TemporaryDirectory(dir=folder) as programs:
            return ours(pathlib.Path(programs))

    def theirs() -> int:
        python(THEIRS, DEMO_LLAMA, width)
        return 1

    return {
        "ours, later start (programs kept)": lambda: ours(folder / "programs"),
        "ours, first start": first,
        "transformers + peft": theirs,
    }


def compile_seconds(llm: pathlib.Path, layers: int, how: str = "scanned") -> float:
    """Tracing and compilation of the training step, as timed by the process that does it."""
    return float(python(COMPILE, llm, layers, how))


def compilations(llm: pathlib.Path, layers: list[int], rounds: int) -> Comparison:
    """The same for models of several depths, and for the deepest unrolled."""
    sides = {f"{count} layers": (count,) for count in layers}
    sides[f"{layers[-1]} layers, unrolled"] = (layers[-1], "unrolled")
    rates = {name: [] for name in sides}
    for _ in tqdm(range(rounds), desc="compilation", unit="round"):
        for name, settings in sides.items():
            rates[name].append(1 / compile_seconds(llm, *settings))
    return Comparison("tracing and compilation of the training step", "compilations", rates)


@reported_to_user()
def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 8, 32], help="to compile (default: %(default)s)")
    add_flags(parser)
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="startup.") as name:
        folder = pathlib.Path(name)
        title = "from the start of the process to the end of the first update"
        started = compare(starts(folder), args.rounds, title, "starts")
        compiled = compilations(folder / "llm", args.layers, args.rounds)
    report([started, compiled], args.output)


if __name__ == "__main__":
    main()
