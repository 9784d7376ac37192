"""Training input: packed rows from our shards against mp4 and wav files, which the reference reads in every epoch.

    python -m benchmarks.loader [--clips 500] [--read 20000] [--rounds 3] [--output FILE.json]

Writes clips of VASR's size to a temporary folder twice: as records of encoder features 1024 wide (random numbers: what
they say does not matter to their reading), and as mp4 and wav, rendered by the demo's generator. Ours is the training
pipeline with all it does: read, check, convert to bfloat16, tokenise, pack, batch. The reference's way is decoding to
grey, crop and normalisation of the video, filterbanks of the audio; and then it runs the encoder, which is not part of
this (`python -m benchmarks.features`). Files are in the page cache: this measures the processor, not the disk. Our side
starts its pipeline anew in every round, and reads more clips, over and over, since it first fills its open rows.
"""

import argparse
import contextlib
import os
import pathlib
import tempfile

import ml_collections
import numpy as np
from torch.utils.data import DataLoader

from benchmarks.media_clips import MediaClips, write_media
from benchmarks.rounds import Comparison, add_flags, compare, report
from benchmarks.vasr_clips import FOLDER, FRAMES, draw_clips, make_prompt, write_shards
from configs import final
from viavsp_jax.data import pipeline
from viavsp_jax.run_settings import read_settings
from viavsp_jax.runtime.errors import reported_to_user

WIDTH, VOCABULARY = 1024, 4096


def packed_config(shards: pathlib.Path, rows: int, width: int) -> ml_collections.ConfigDict:
    """configs/final.py on these shards."""
    config = final.get_config()
    config.data.rows = rows
    config.data.path, config.data.train, config.data.feature_width = str(shards), (FOLDER,), width
    return config


def read_packed(config: ml_collections.ConfigDict, clips: int) -> int:
    """Starts the pipeline, takes batches until they held at least so many clips; how many they held."""
    done = 0
    with contextlib.closing(pipeline.training_batches(read_settings(config).data, make_prompt(VOCABULARY))) as batches:
        while done < clips:
            done += round(float(next(batches)["weights"].sum()))
    return done


def read_media(loader: DataLoader) -> int:
    """One pass over the clips; how many there were. Raises ValueError if one has not all its frames."""
    done = 0
    for video, audio in loader:
        if len(video) != FRAMES or len(audio) != FRAMES:
            raise ValueError(f"clip {done} has {len(video)} video and {len(audio)} audio frames, not {FRAMES}")
        done += 1
    return done


def run(
    folder: pathlib.Path, clips: int, read: int, rows: int, width: int, rounds: int
) -> tuple[Comparison, dict[str, str]]:
    """Writes clips to `folder`, then times the sides, ours over `read` clips; also what a clip takes on disk."""
    shards, workers = folder / "shards", os.cpu_count() or 1
    write_shards(shards, {"train": draw_clips(clips, width, VOCABULARY)})
    dataset = MediaClips(write_media(folder / "media", clips))
    config = packed_config(shards, rows, width)
    alone = DataLoader(dataset, batch_size=None)
    # Spawned: JAX has threads, which a fork would cut off. They live on, so that starting them is not timed.
    context = {"multiprocessing_context": "spawn", "persistent_workers": True}
    together = DataLoader(dataset, batch_size=None, num_workers=workers, **context)
    sides = {
        "packed rows from shards": lambda: read_packed(config, read),
        "mp4 + wav, one process": lambda: read_media(alone),
        f"mp4 + wav, {workers} workers": lambda: read_media(together),
    }
    comparison = compare(sides, rounds, f"training input, {clips} clips of {FRAMES} frames, features {width} wide")
    of_record, of_media = (
        sum(file.stat().st_size for file in part.rglob("*") if file.is_file()) / clips / 1e6
        for part in (shards, folder / "media")
    )
    sizes = dict(zip(sides, (of_record, of_media, of_media), strict=True))
    facts = {
        f"{name}: MB/s": f"{float(np.median(rates)) * sizes[name]:.1f} ({1e3 * sizes[name]:.1f} kB a clip)"
        for name, rates in comparison.rates.items()
    }
    return comparison, facts


@reported_to_user()
def main(arguments: list[str] | None = None) -> Comparison:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader", description=__doc__.split("\n")[0])
    parser.add_argument("--clips", type=int, default=500, help="clips to write (default: %(default)s)")
    parser.add_argument(
        "--read", type=int, default=20_000, help="clips our side reads in a round (default: %(default)s)"
    )
    parser.add_argument("--rows", type=int, default=8, help="packed rows of a batch (default: %(default)s)")
    parser.add_argument("--width", type=int, default=WIDTH, help="features of a frame (default: %(default)s)")
    add_flags(parser)
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="loader.") as folder:
        comparison, facts = run(pathlib.Path(folder), args.clips, args.read, args.rows, args.width, args.rounds)
    facts["not in it"] = "the encoder, which the reference runs on every clip it reads"
    report([comparison], args.output, **facts)
    return comparison


if __name__ == "__main__":
    main()
