"""Training and beam search at real size, VinaLLaMA-2.7B with random bfloat16 weights, on one GPU or TPU.

    python -m benchmarks.real_size [--work training] [--quantization nf4] [--output FILE.json]

The sides are those of benchmarks/train_step.py and benchmarks/beam_search.py; on a TPU there is no PyTorch, and
quantised weights have none of the same numbers there: then this project's figures stand alone. Rows are those of
configs/final.py. Weights are made on the device and never pass through the host's memory. With the sizes of a small
model (--layers and so on) it runs on a CPU too, in float32.

MFU is the share of the device's bfloat16 peak that useful operations take: 4 for each weight and token in training, 2
in decoding, and attention; padding and what is computed twice do not count (viavsp_jax/aot/flops.py).
"""

import argparse
import pathlib
import re
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import get_args

import jax
import torch

from benchmarks import beam_search, rounds, torch_training, train_step
from benchmarks.random_model import VINALLAMA, RandomModel, add_size_flags, prepare, sizes, to_torch
from viavsp_jax.aot import flops
from viavsp_jax.aot.topology import CHIPS
from viavsp_jax.data.examples import Example
from viavsp_jax.data.packing import speech_prompt
from viavsp_jax.models.quantize import Quantization
from viavsp_jax.runtime.errors import reported_to_user

Facts = dict[str, float | str]

# Dense bfloat16 FLOP/s, by what stands in the device's name; the first that matches.
PEAKS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L4": 121e12,
    "TPU v4": CHIPS["v4"].peak_flops,
    "TPU v5 lite": CHIPS["v5e"].peak_flops,
    "TPU v5": CHIPS["v5p"].peak_flops,
    "TPU v6 lite": CHIPS["v6e"].peak_flops,
}


def peak_flops(device: jax.Device) -> float | None:
    """The device's peak in FLOP/s, when it is known."""
    return next((peak for name, peak in PEAKS.items() if re.search(rf"\b{name}\b", device.device_kind)), None)


def peak_memory(side: Callable[[], int]) -> float | None:
    """Calls a side; the most of the device's memory that JAX has taken until then, in GB, where the device tells."""
    side()
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats["peak_bytes_in_use"] / 1e9 if "peak_bytes_in_use" in stats else None


def use(
    comparison: rounds.Comparison, flops_per_clip: float, tokens_per_clip: float, step: str, clips: dict[str, float]
) -> Facts:
    """Tokens a second, MFU and milliseconds a step of each side, of the median round.

    `step` is what a step is called, `clips` how many clips one takes on each side.
    """
    device = jax.local_devices()[0]
    peak = peak_flops(device)
    facts = {"peak_for_MFU": f"{peak / 1e12:,.0f} TFLOP/s, dense bfloat16, {device.device_kind}"} if peak else {}
    for side, rates in comparison.rates.items():
        rate, name = statistics.median(rates), f"{comparison.title},_{side}:"
        facts[f"{name}_ms_{step}"] = 1e3 * clips[side] / rate
        facts[f"{name}_tokens/s"] = rate * tokens_per_clip
        if peak:
            facts[f"{name}_MFU"] = rate * flops_per_clip / peak
    return facts


def alone(args: argparse.Namespace) -> bool:
    """Whether there is no PyTorch to compare with."""
    return args.alone or jax.default_backend() == "tpu" or args.quantization != "none"


def torch_peak(work: str) -> Facts:
    """The most of a GPU's memory that PyTorch's tensors took since the last call, in GB."""
    if not torch.cuda.is_available():
        return {}
    peak = torch.cuda.max_memory_allocated() / 1e9
    torch.cuda.reset_peak_memory_stats()
    return {f"peak_GB_of_{work}_in_PyTorch": peak}


def training(
    model: RandomModel, ours: train_step.PackedTraining, clips: Sequence[Example], args: argparse.Namespace
) -> tuple[rounds.Comparison, Facts]:
    """Compares updates; tokens are the positions of clips, without padding."""
    prompt, theirs, facts = model.experiment.prompt, {}, {}
    if not alone(args):
        ported = to_torch(model)
        converted = [torch_training.to_clip(clip, prompt, ported.device) for clip in clips]
        facts = train_step.check_losses(model, ported, converted)
        theirs = train_step.torch_sides(ported, converted, args.batches)
    comparison = rounds.compare({"packed rows": ours} | theirs, args.rounds, "training")
    updates = {"packed rows": ours.clips_per_update} | {name: x.accumulate * x.batch for name, x in theirs.items()}
    labels = [len(prompt.label(clip["transcript"])) for clip in clips]
    # The last label token is predicted, never read.
    lengths = [len(speech_prompt(clip, prompt)["tokens"]) + n - 1 for clip, n in zip(clips, labels, strict=True)]
    # The instruction, which a row needs once, is left out.
    own = [range(len(prompt.instruction("vi", "vi")), length) for length in lengths]
    count = flops.useful_in_training(model.experiment.model.llama, zip(own, labels, strict=True))
    used = use(comparison, count / len(clips), statistics.mean(lengths), "an_update", updates)
    return comparison, facts | used | torch_peak("training")


def decoding(
    model: RandomModel, ours: beam_search.BatchedSearch, clips: Sequence[Example], args: argparse.Namespace
) -> tuple[rounds.Comparison, Facts]:
    """Compares beam searches of the test split; tokens are those generated by all beams, a step one of each."""
    clips = clips[: args.clips]
    theirs = {} if alone(args) else beam_search.torch_sides(model, to_torch(model), clips)
    comparison = rounds.compare({"batched": ours} | theirs, args.rounds, "beam search")
    steps = {"batched": len(clips) / args.new_tokens} | {name: x.batch / args.new_tokens for name, x in theirs.items()}
    work = [(len(speech_prompt(clip, model.experiment.prompt)["tokens"]), args.new_tokens) for clip in clips]
    count = flops.useful_in_decoding(model.experiment.model.llama, work, args.beams)
    facts = beam_search.check_tokens(ours, theirs)
    used = use(comparison, count / len(clips), args.beams * args.new_tokens, "a_step", steps)
    return comparison, facts | used | torch_peak("decoding")


# Peaks cannot be set back in JAX: what takes less goes first.
SIDES = {
    "decoding": lambda model, args: beam_search.BatchedSearch(model),
    "training": lambda model, args: train_step.PackedTraining(model, args.updates),
}
COMPARE = {"decoding": decoding, "training": training}


@reported_to_user()
def main(arguments: Sequence[str] | None = None) -> list[rounds.Comparison]:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_size", description=__doc__.split("\n")[0])
    rounds.add_flags(parser)
    train_step.add_flags(parser, rows=8, batches=[8, 16, 32])
    beam_search.add_flags(parser, clips=16)
    add_size_flags(parser, VINALLAMA)
    parser.add_argument("--work", nargs="+", choices=SIDES, default=list(SIDES), help="default: all")
    parser.add_argument("--quantization", choices=get_args(Quantization), default="none", help="default: %(default)s")
    parser.add_argument("--alone", action="store_true", help="without PyTorch, for the memory it would take")
    args = parser.parse_args(arguments)
    if jax.default_backend() == "cpu" and sizes(args) == VINALLAMA:
        sys.exit("no GPU or TPU is here: the model of real size needs one, --layers and so on ask for a smaller one")
    with tempfile.TemporaryDirectory() as folder:
        splits = train_step.SPLITS | {"test": args.clips}
        settings = beam_search.settings(args) | {"data.rows": args.rows, "llm.quantization": args.quantization}
        model, clips = prepare(pathlib.Path(folder), args, splits, **settings)
        sides = {work: side(model, args) for work, side in SIDES.items() if work in args.work}
        # Of all sides of ours, before weights are copied for PyTorch.
        facts = {f"peak_GB_of_{work}": peak_memory(side) for work, side in sides.items()}
        comparisons = []
        for work, side in sides.items():
            comparison, of_work = COMPARE[work](model, side, clips, args)
            comparisons.append(comparison)
            facts |= of_work
    rounds.report(comparisons, args.output, **facts)
    return comparisons


if __name__ == "__main__":
    main()
