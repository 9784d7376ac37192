"""The demo corpus as tar archives of samples, in the layout of ViCocktail: see prepare/corpus/tars.py."""

import io
import tarfile
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from viavsp_jax.prepare.demo.corpus import CLIPS_PER_SHARD, Clip, map_clips, render_clip, word_lines
from viavsp_jax.prepare.recordings.mouth_video import write_video
from viavsp_jax.runtime.atomic import atomic_write


def write_archives(output: str | Path, clips: list[Clip], workers: int) -> None:
    """Writes data/demo-<split>-<number>.tar, those that are missing."""
    output, jobs = Path(output), {}
    for split in dict.fromkeys(clip.split for clip in clips):
        own = [clip for clip in clips if clip.split == split]
        for start in range(0, len(own), CLIPS_PER_SHARD):
            path = output / "data" / f"demo-{split}-{start // CLIPS_PER_SHARD:06d}.tar"
            jobs[path] = own[start : start + CLIPS_PER_SHARD]
    with tqdm(total=len(clips), unit="clip", desc="demo corpus") as bar:
        for path, own in jobs.items():
            if path.exists():
                bar.update(len(own))
                continue
            with atomic_write(path) as temporary, tarfile.TarFile(temporary, "w") as archive:
                for sample in map_clips(_sample, own, workers):
                    for name, content in sample.items():
                        member = tarfile.TarInfo(name)
                        member.size = len(content)
                        archive.addfile(member, io.BytesIO(content))
                    bar.update()


def _sample(clip: Clip) -> dict[str, bytes]:
    """The members of a clip. Its id tells the speaker in front of four numbers, as those of ViCocktail a recording."""
    rendered = render_clip(clip)
    crops = np.stack([cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY) for frame in rendered.frames])
    video = io.BytesIO()
    write_video(video, crops, rendered.samples)
    number = int(clip.id.rpartition("_")[2])
    texts = {
        "label": clip.transcript,
        "length": str(len(crops)),
        "sample_id": f"{clip.speaker.id}_{number}_0_0_{len(crops)}",
    }
    contents = {name: text.encode() for name, text in texts.items()}
    contents |= {"words": word_lines(rendered), "video": video.getvalue()}
    return {f"{number:08d}.{name}": content for name, content in contents.items()}
