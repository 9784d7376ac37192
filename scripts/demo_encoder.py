"""The demo with a frozen and with a trained encoder, several seeds each: see scripts/demo_encoder.sh.

Both take the corpus, centres and language model of scripts/demo.sh; what is there is not made again.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from scripts import demo
from viavsp_jax.data.examples import MODALITIES
from viavsp_jax.runtime.errors import reported_to_user
from viavsp_jax.runtime.tables import aligned

SHARED = ("corpus", "manifest", "kmeans", "shards", "from_hf")
CONFIGS = {"frozen": "demo", "trained": "demo_encoder"}


def stages(shared: Path, workdir: Path, seeds: list[int]) -> list[tuple[str, list[list[str]], Path]]:
    """(name, commands, file that notes its seconds) of each stage."""
    found = [(name, commands, shared / "stages" / name) for name, commands in demo.stages(shared) if name in SHARED]
    encoder = ["--manifest", str(shared / "manifest"), "--encoder", str(demo.MODELS / "avhubert")]
    media = ["-m", "viavsp_jax.prepare", "shards", *encoder, "--kmeans", str(shared / "kmeans.safetensors")]
    media += ["--output", str(shared / "shards"), "--kind", "media"]
    noisy = [*media, "--split", "test", *"--noise babble --snr 0".split()]
    found.append(("media", [media, noisy], shared / "stages" / "media"))
    for seed in seeds:
        for encoder, config in CONFIGS.items():
            name = f"{encoder}_{seed}"
            run = ["-m", "viavsp_jax.main", f"--config=configs/{config}.py", f"--workdir={workdir / name}"]
            run += [f"--config.llm.path={shared / 'llm'}", f"--config.data.path={shared / 'shards'}"]
            if encoder == "frozen":  # on the clips that the other one has: media do not come with moved ends
                run += [f"--config.data.train={modality}_clean" for modality in MODALITIES]
            commands = [[*run, f"--config.seed={seed}", f"--mode={mode}"] for mode in ("train", "eval")]
            found.append((name, commands, workdir / "stages" / name))
    return found


def table(workdir: Path, seeds: list[int]) -> str:
    """Word error rates in percent: mean over the seeds and, in brackets, the least and the most."""
    rows = [["WER %, mean (least to most)", *CONFIGS]]
    reports = {
        encoder: [
            json.loads((workdir / f"{encoder}_{seed}" / "report.json").read_text(encoding="utf-8")) for seed in seeds
        ]
        for encoder in CONFIGS
    }
    for name in demo.NAMES:
        cells = []
        for encoder in CONFIGS:
            rates = 100 * np.array([report[name]["wer"] for report in reports[encoder]])
            cells.append(f"{rates.mean():.1f} ({rates.min():.1f} to {rates.max():.1f})")
        rows.append([name, *cells])
    return aligned(rows)


@reported_to_user()
def main() -> None:
    """Runs what is left to run, then prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, required=True, help="the work folder of the demo")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    seconds = {name: demo.run_stage(name, commands, done) for name, commands, done in
               stages(args.shared, args.workdir, args.seeds)}  # fmt: skip
    print("\n" + table(args.workdir, args.seeds))
    print("seconds: " + ", ".join(f"{name} {value:.0f}" for name, value in seconds.items()))


if __name__ == "__main__":
    main()
