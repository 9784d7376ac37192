"""Clips of VASR's length as mp4 and wav, and their reading as the reference does it in every epoch.

Imports no JAX: worker processes start with this.
"""

import os
import pathlib
import wave

import cv2
import numpy as np
from torch.utils.data import Dataset
from tqdm import tqdm

from viavsp_jax.data.features import FRAME_RATE, FRAME_SIZE, SAMPLE_RATE, video_input
from viavsp_jax.prepare.demo.corpus import synthesize_clips
from viavsp_jax.prepare.features.reading import read_media
from viavsp_jax.prepare.manifest_files import Clip

FRAMES, SAMPLES = 76, 48_000


def write_media(folder: pathlib.Path, count: int) -> list[Clip]:
    """Renders clips of the demo, cut or repeated to the length of VASR's, as mp4 and wav."""
    folder.mkdir(parents=True)
    clips = []
    rendered = synthesize_clips(0, count, "train", workers=min(os.cpu_count() or 1, -(-count // 8)))
    for number, clip in enumerate(tqdm(rendered, desc="rendering", total=count, unit="clip")):
        video, audio = folder / f"{number}.mp4", folder / f"{number}.wav"
        writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*"mp4v"), FRAME_RATE, (FRAME_SIZE,) * 2)
        for frame in np.resize(clip.frames, (FRAMES, *clip.frames.shape[1:])):
            writer.write(frame)
        writer.release()
        with wave.open(str(audio), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(SAMPLE_RATE)
            file.writeframes(np.resize(clip.samples, SAMPLES).astype("<i2").tobytes())
        clips.append(Clip(f"clip{number}", "vi", "vi", str(video), str(audio), FRAMES, SAMPLES, clip.transcript))
    return clips


class MediaClips(Dataset):
    """Item i: what the encoder takes of clip i, video float32[T, 88, 88] and audio float32[T, 104]."""

    def __init__(self, clips: list[Clip]):
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        found = read_media(self.clips[index])
        return video_input(found.frames), found.audio
