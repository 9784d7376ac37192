"""The demo corpus on disk, in the layout of VASR, and the same kind of clips in memory for pre-training.

A clip follows from (corpus seed, split, its index) alone: who writes it, in which order and in how many
processes makes no difference.
"""

import functools
import itertools
import json
import multiprocessing
import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm

from viavsp_jax.data import wav
from viavsp_jax.data.features import FRAME_RATE, SAMPLE_RATE, SAMPLES_PER_FRAME
from viavsp_jax.prepare.demo.face import SIZE, Face, render
from viavsp_jax.prepare.demo.sentences import sample_sentences
from viavsp_jax.prepare.demo.speech import SILENCE, Phoneme, Speaker, synthesize
from viavsp_jax.prepare.demo.visemes import VISEMES
from viavsp_jax.prepare.parquet import write_parquet
from viavsp_jax.prepare.workers import deaf_to_ctrl_c
from viavsp_jax.runtime.atomic import write_bytes
from viavsp_jax.runtime.errors import InputError

CLIPS_PER_SHARD = 500
TOPIC = "daily life"

PHONEMES: tuple[str, ...] = (SILENCE, *sorted(set(VISEMES) - {SILENCE}))
"""Names of the frame labels; index 0 is silence."""

_VOICES = ("vi", "vi-vn-x-central", "vi-vn-x-south")
# Variants are disjoint: a speaker of another split differs in timbre, not only in pitch and speed. In this order
# speakers are numbered.
_VARIANTS = {
    "train": ("m1", "m2", "m3", "m6", "m7", "f1", "f2", "f4"),
    "valid": ("m5", "f5"),
    "test": ("m4", "f3"),
    "pretrain": ("m8", "Alex", "Andy", "Annie", "Diogo", "Gene", "Lee", "Mario", "linda", "steph"),
}


def _speaker(number: int, voice: str, variant: str) -> Speaker:
    speaker_id = f"spk{number:02d}"
    rng = random.Random(speaker_id)
    return Speaker(
        id=speaker_id,
        voice=voice,
        variant=variant,
        pitch=rng.randint(35, 65),
        pitch_range=rng.randint(40, 70),
        rate=rng.randint(160, 205),
        loudness=rng.uniform(-30, -22),
    )


def _casts() -> dict[str, tuple[Speaker, ...]]:
    casts, numbers = {}, itertools.count()
    for split, variants in _VARIANTS.items():
        pairs = itertools.product(_VOICES, variants)
        casts[split] = tuple(_speaker(next(numbers), voice, variant) for voice, variant in pairs)
    # Pre-training hears the training speakers too, and never those of validation and test.
    casts["pretrain"] = casts["train"] + casts["pretrain"]
    return casts


SPEAKERS: dict[str, tuple[Speaker, ...]] = _casts()
"""Split -> its speakers. Validation and test share none with any other split."""


@dataclass(frozen=True)
class Clip:
    """What there is to say about a clip before it is made."""

    id: str
    split: str
    shard: str
    transcript: str
    speaker: Speaker
    seed: int  # of head motion, exposure and noise


@dataclass(frozen=True)
class RenderedClip:
    """A clip in memory: uint8[T, 96, 96, 3] BGR frames and int16[640 T] samples.

    `phoneme_labels` and `tone_labels` are int32[T], of the phoneme spoken at the centre of each frame: its
    index in PHONEMES, and the tone of its syllable, 1 to 6, or 0 in silence. `word_times` are seconds.
    """

    frames: np.ndarray
    samples: np.ndarray
    transcript: str
    phoneme_labels: np.ndarray
    tone_labels: np.ndarray
    word_times: list[tuple[float, float]]
    speaker: str


def plan_clips(seed: int, count: int, split: str, first_index: int = 0) -> list[Clip]:
    """`count` clips of `split` ("pretrain", "train", "valid" or "test"), numbered from `first_index`."""
    cast = SPEAKERS[split]
    clips = []
    for index, transcript in enumerate(sample_sentences(seed, count, split)):
        rng = random.Random(f"clip/{split}/{seed}/{index}")
        # Dealt in rounds, so every speaker says equally much.
        speaker = cast[index % len(cast)]
        number = first_index + index
        shard = f"{number // CLIPS_PER_SHARD:04d}"
        clip_id = f"{speaker.id}_{number:06d}"
        clips.append(Clip(clip_id, split, shard, transcript, speaker, rng.getrandbits(32)))
    return clips


def frame_labels(phonemes: tuple[Phoneme, ...], num_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Phoneme index and tone at the centre of each of `num_frames` frames at 25 fps: int32[T], int32[T]."""
    centres = (np.arange(num_frames) + 0.5) / FRAME_RATE
    at = np.searchsorted([p.end for p in phonemes], centres, side="right").clip(max=len(phonemes) - 1)
    index = {name: i for i, name in enumerate(PHONEMES)}
    names = np.array([index[p.name] for p in phonemes], np.int32)
    tones = np.array([p.tone for p in phonemes], np.int32)
    return names[at], tones[at]


def render_clip(clip: Clip) -> RenderedClip:
    """Speaks and draws one clip. Raises InputError as `synthesize` and `render` do."""
    speech = synthesize(clip.transcript, clip.speaker)
    num_frames = len(speech.samples) // SAMPLES_PER_FRAME
    face = Face.random(zlib.crc32(clip.speaker.id.encode()))
    frames = render(speech.phonemes, num_frames, face, np.random.default_rng(clip.seed))
    labels, tones = frame_labels(speech.phonemes, num_frames)
    times = speech.word_times()
    return RenderedClip(frames, speech.samples, clip.transcript, labels, tones, times, clip.speaker.id)


def map_clips(function, clips: list[Clip], workers: int) -> Iterator:
    """`function` of every clip, in order, computed by `workers` processes."""
    if workers <= 1:
        yield from map(function, clips)
        return
    # Spawned, not forked: the caller may hold threads of JAX or PyTorch.
    with deaf_to_ctrl_c():
        pool = multiprocessing.get_context("spawn").Pool(workers, initializer=cv2.setNumThreads, initargs=(1,))
    with pool:
        yield from pool.imap(function, clips, chunksize=4)


def synthesize_clips(seed: int, count: int, split: str, workers: int = 1) -> Iterator[RenderedClip]:
    """`count` clips of `split` in memory, the same in the same order for the same seed and any `workers`."""
    yield from map_clips(render_clip, plan_clips(seed, count, split), workers)


def _paths(output: Path, clip: Clip) -> tuple[Path, Path, Path]:
    folders = (("visual", "mp4"), ("audio", "wav"), ("words", "json"))
    return tuple(output / folder / clip.shard / f"{clip.id}.{suffix}" for folder, suffix in folders)


def word_lines(rendered: RenderedClip) -> bytes:
    """JSON: [word, start, end] of each word, in seconds."""
    words = zip(rendered.transcript.split(), rendered.word_times, strict=True)
    return json.dumps(
        [[word, round(start, 4), round(end, 4)] for word, (start, end) in words], ensure_ascii=False
    ).encode()


def _write_video(path: Path, frames: np.ndarray) -> None:
    # Absolute, or FFmpeg takes what is before a colon for a protocol.
    writer = cv2.VideoWriter(str(path.absolute()), cv2.VideoWriter_fourcc(*"mp4v"), FRAME_RATE, (SIZE, SIZE))
    if not writer.isOpened():
        raise InputError(f"{path}: OpenCV cannot write an mp4v video there")
    for frame in frames:
        writer.write(frame)
    writer.release()


def _write_clip(clip: Clip, output: Path) -> None:
    rendered = render_clip(clip)
    contents = rendered.frames, rendered.samples, word_lines(rendered)
    jobs = zip(_paths(output, clip), (_write_video, wav.write_speech, Path.write_bytes), contents, strict=True)
    for path, write, content in jobs:
        # OpenCV chooses the container by the suffix, so the unfinished file keeps it. What a run that was stopped left
        # of one is replaced.
        unfinished = path.with_name(f".{path.name}")
        write(unfinished, content)
        unfinished.replace(path)


def _write_metadata(output: Path, clips: list[Clip]) -> None:
    num_samples = [wav.read_layout(_paths(output, clip)[1]).size // 2 for clip in clips]
    table = pd.DataFrame(
        {
            "id": [clip.id for clip in clips],
            "shard": [clip.shard for clip in clips],
            "fps": FRAME_RATE,
            "sampling_rate": SAMPLE_RATE,
            "transcript": [clip.transcript for clip in clips],
            "video_num_frames": [n // SAMPLES_PER_FRAME for n in num_samples],
            "audio_num_frames": num_samples,
            "split": [clip.split for clip in clips],
        }
    )
    mapping = [{"id": c.id, "shard": c.shard, "split": c.split, "channel": c.speaker.id, "topic": TOPIC} for c in clips]
    write_bytes(output / "mapping.json", (json.dumps(mapping, ensure_ascii=False, indent=1) + "\n").encode())
    write_parquet(output / "metadata.parquet", table)


def plan_corpus(
    output: str | Path, num_train: int, num_valid: int, num_test: int, *, seed: int, layout: str = "vasr"
) -> list[Clip]:
    """All clips of a corpus in the folder `output`, where what it is made with is noted.

    Raises InputError if the folder holds a corpus made with other counts, another seed or in another layout.
    """
    output = Path(output)
    clips: list[Clip] = []
    for split, count in (("train", num_train), ("valid", num_valid), ("test", num_test)):
        clips += plan_clips(seed, count, split, first_index=len(clips))
    settings = {"num_train": num_train, "num_valid": num_valid, "num_test": num_test, "seed": seed}
    settings |= {} if layout == "vasr" else {"layout": layout}  # as it always was
    output.mkdir(parents=True, exist_ok=True)
    settings_path = output / "demo.json"
    if settings_path.exists():
        found = json.loads(settings_path.read_text(encoding="utf-8"))
        if found != settings:
            raise InputError(f"{settings_path}: the corpus there was made with {found}, expected {settings}")
    else:
        settings_path.write_text(json.dumps(settings) + "\n", encoding="utf-8")
    return clips


def write_corpus(output: str | Path, clips: list[Clip], workers: int) -> None:
    """Writes visual/, audio/, words/ (when each word is said), mapping.json and, last of all, metadata.parquet.

    A finished corpus is left as it is, an unfinished one is completed.
    """
    output = Path(output)
    if (output / "metadata.parquet").exists():
        return
    for clip in clips:
        for path in _paths(output, clip):
            path.parent.mkdir(parents=True, exist_ok=True)
    missing = [clip for clip in clips if not all(path.exists() for path in _paths(output, clip))]
    write = functools.partial(_write_clip, output=output)
    with tqdm(total=len(clips), initial=len(clips) - len(missing), unit="clip", desc="demo corpus") as bar:
        for _ in map_clips(write, missing, workers):
            bar.update()
    _write_metadata(output, clips)
