"""Runs the stages of the demo one after the other and joins their results: see scripts/demo.sh.

Every stage is a command of this project, run as a user would run it. A stage that finished is not run again.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd

from configs.demo import get_config
from viavsp_jax.evaluate import score_table
from viavsp_jax.evaluation.report.results import last_folder
from viavsp_jax.runtime.errors import reported_to_user

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "viavsp_jax" / "demo_models"
NAMES = get_config().evaluate.names


def stages(workdir: Path) -> list[tuple[str, list[list[str]]]]:
    """(name, commands) of each stage; every command is a list of arguments for Python."""
    prepare = ["-m", "viavsp_jax.prepare"]
    corpus, manifest, shards, llm = (str(workdir / name) for name in ("corpus", "manifest", "shards", "llm"))
    kmeans, exported = str(workdir / "kmeans.safetensors"), str(workdir / "huggingface")
    encoder = ["--manifest", manifest, "--encoder", str(MODELS / "avhubert")]
    clusters = "--layer 2 --num_clusters 100 --fraction 0.1".split()
    shard = [*prepare, "shards", *encoder, "--kmeans", kmeans, "--output", shards]
    run = ["-m", "viavsp_jax.main", "--config=configs/demo.py", f"--workdir={workdir}"]
    run += [f"--config.llm.path={llm}", f"--config.data.path={shards}"]
    decode = ["-m", "convert.decode_hf", "--model", exported]
    return [
        ("corpus", [[*prepare, "demo", "--output", corpus]]),
        ("manifest", [[*prepare, "manifest", "--data", corpus, "--output", manifest]]),
        ("kmeans", [[*prepare, "kmeans", *encoder, "--output", kmeans, *clusters]]),
        ("shards", [
            [*shard, "--modalities", "av", "audio", "video"],
            [*shard, "--modalities", "av", "audio", "video", "--split", "train", "valid", "--wild", "0.4"],
            [*shard, "--modalities", "av", "audio", "--split", "valid", "test", *"--noise babble --snr 0".split()],
        ]),
        ("from_hf", [["-m", "convert.from_hf", str(MODELS / "llama"), "--output", llm, "--dtype", "float32"]]),
        ("train", [[*run, "--mode=train"]]),
        ("calibrate", [[*run, "--mode=calibrate"]]),
        ("eval", [[*run, "--mode=eval", f"--config.evaluate.mapping={corpus}/mapping.json"]]),
        ("to_hf", [["-m", "convert.to_hf", "--workdir", str(workdir), "--output", exported]]),
        ("decode_hf", [
            [*decode, "--data", f"{shards}/{name}", "--output", f"{exported}/hypotheses/{name}.tsv"] for name in NAMES
        ]),
    ]  # fmt: skip


def run_stage(name: str, commands: list[list[str]], done: Path) -> float:
    """Runs a stage unless `done` says it was; returns its seconds, of the earlier run if there was one."""
    if done.exists():
        return float(done.read_text(encoding="utf-8"))
    start = time.monotonic()
    for command in commands:
        print(f"\n== {name}: python {shlex.join(command)}", flush=True)
        if status := _status_of(command):
            sys.exit(f"error: the stage {name} failed (exit status {status}); call the demo again to continue")
    return recorded(done, round(time.monotonic() - start, 1))


def _status_of(command: list[str]) -> int:
    """Runs one command; Ctrl-C, of which it hears itself, ends this process when the command has saved its work."""
    with subprocess.Popen([sys.executable, *command], cwd=ROOT) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.wait()
            sys.exit(130)


def recorded(done: Path, seconds: float) -> float:
    """Keeps the seconds of a stage in `done`; those that are there already stand."""
    if not done.exists():
        done.parent.mkdir(parents=True, exist_ok=True)
        done.write_text(str(seconds), encoding="utf-8")
    return float(done.read_text(encoding="utf-8"))


def agreement(workdir: Path) -> float:
    """Share of the test clips, over all conditions, for which Hugging Face writes what JAX wrote."""
    same, total = 0, 0
    for name in NAMES:
        ours, theirs = (
            pd.read_csv(folder / f"{name}.tsv", sep="\t", keep_default_na=False).set_index("id")
            for folder in (last_folder(workdir), workdir / "huggingface" / "hypotheses")
        )
        same += int((ours.hypothesis == theirs.hypothesis.reindex(ours.index)).sum())
        total += len(ours)
    return same / total


@reported_to_user()
def main() -> None:
    """Runs what is left to run, then writes and prints the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--install_seconds", type=float, default=0.0)
    args = parser.parse_args()
    seconds = {"install": recorded(args.workdir / "stages" / "install", args.install_seconds)}
    for name, commands in stages(args.workdir):
        seconds[name] = run_stage(name, commands, args.workdir / "stages" / name)
    path = args.workdir / "report.json"
    report = json.loads(path.read_text(encoding="utf-8"))
    report["stage_seconds"] = seconds
    report["hf_agreement"] = agreement(args.workdir)
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print("\n" + score_table({name: report[name] for name in NAMES}))
    print(f"\nHugging Face writes the same words for {report['hf_agreement']:.1%} of the clips.")
    print("seconds: " + ", ".join(f"{name} {value:.0f}" for name, value in seconds.items()))
    print(f"total: {sum(seconds.values()) / 60:.1f} minutes; report: {path.with_suffix('.html')}")
    print(f"A video of your own: scripts/transcribe.sh VIDEO --model {args.workdir}")


if __name__ == "__main__":
    main()
