"""The open corpus's archives → clips, their pictures and sound, and what the encoder hears."""

from collections.abc import Iterator

import numpy as np
from etils import epath

from tests.parity.rows import EXACT, MODULE, Golden, Row, close, exact
from viavsp_jax.data import addresses, media
from viavsp_jax.data.features import FRAME_SIZE, audio_features
from viavsp_jax.prepare.corpus import tars
from viavsp_jax.prepare.corpus.entries import Entry, clip_id
from viavsp_jax.prepare.recordings.clip import ClipMedia, read_clip
from viavsp_jax.prepare.recordings.probe import probe
from viavsp_jax.runtime.errors import InputError

FOLDER = "vicocktail/"
ROUNDED = 6e-4  # of what is recorded with three decimals
ONE_STEP = 1.0  # of int16: two decoders round samples differently
ENDS = 64  # samples more or less that a resampler gives
RESAMPLED = 0.01  # of loudness: two resamplers
_PLAIN = (16_000, 1)  # sound whose samples are taken as they are


def checks(golden: Golden) -> Iterator[Row]:
    """Everything recorded of the corpus."""
    entries = {(addresses.file_of(one.video), addresses.name_of(one.video)): one for one in corpus(golden)}
    found: dict[str, ClipMedia] = {}
    for clip in golden.json(f"{FOLDER}expected.json"):
        name = f"{clip['tar']}:{clip['key']}"
        video = next((member for member in clip["members"] if member.endswith((".video", ".mp4"))), None)
        entry = entries.get((clip["tar"], video))
        if entry is None:
            yield Row(f"{name} is not listed", float(video is not None), EXACT)
            continue
        yield from text_checks(name, clip, entry)
        address = str(golden.path(f"{FOLDER}data/{clip['tar']}").parent / entry.video)
        try:
            found[name] = read_clip(address, address)
        except InputError as error:
            # What the recording's own decoder found whole and of the right size has to be read.
            video = clip.get("video") or {}
            whole = video.get("decoded_frames") and video["decoded_frames"] == video.get("container_frames")
            size = video.get("width"), video.get("height")
            reason = str(error).partition(": ")[2]
            yield Row(f"{name} is refused", float(bool(whole) and size == (FRAME_SIZE,) * 2), EXACT, reason)
            continue
        yield from clip_checks(name, clip["video"], address, found[name])
    yield from feature_checks(golden, found)


def corpus(golden: Golden) -> list[Entry]:
    """The clips of all recorded archives, by the reader of the manifest stage; paths are in the archives' folder."""
    paths = [golden.path(name) for name in golden.names(f"{FOLDER}data/*.tar")]
    return list(tars.read(epath.Path(paths[0]).parent).entries)


def text_checks(name: str, clip: dict, entry: Entry) -> Iterator[Row]:
    """What is said, and the clip's name."""
    if clip.get("label") is not None:
        yield exact(f"{name} text", entry.transcript, clip["label"])
    yield exact(f"{name} id", entry.id, clip_id(clip.get("sample_id") or clip["key"]))


def clip_checks(name: str, video: dict, address: str, read: ClipMedia) -> Iterator[Row]:
    """One clip against what other decoders found in it."""
    known, raw = probe(address), media.read_video(address)
    size = known.pictures.width, known.pictures.height, known.pictures.count
    yield exact(f"{name} pictures in the file", size, (video["width"], video["height"], video["container_frames"]))
    sound = known.sound.rate, known.sound.channels
    yield exact(f"{name} sound in the file", sound, (video["audio_rate"], video["audio_channels"]))
    seconds = abs(known.sound.seconds - video["audio_container_seconds"])
    yield Row(f"{name} seconds of sound", seconds, ROUNDED)
    yield exact(f"{name} frames", len(raw), video["decoded_frames"])
    if known.pictures.at_25:
        yield exact(f"{name} frames as they are", read.frames, raw)
    means = [part.mean() for part in (raw, raw[0], raw[-1])]
    names = ("gray_mean", "gray_first_frame_mean", "gray_last_frame_mean")
    yield Row(f"{name} grey levels", max(abs(x - video[one]) for x, one in zip(means, names, strict=True)), ROUNDED)
    samples, loudness = len(read.samples), float(np.sqrt(np.square(read.samples, dtype=np.float64).mean()))
    differ = abs(samples - video["audio_samples_16k_mono"])
    louder = abs(loudness - video["audio_rms_int16"]) / video["audio_rms_int16"]
    yield Row(f"{name} samples", differ, EXACT if sound == _PLAIN else ENDS)
    yield Row(f"{name} loudness", louder, 1e-5 if sound == _PLAIN else RESAMPLED)


def feature_checks(golden: Golden, found: dict[str, ClipMedia]) -> Iterator[Row]:
    """Pictures and samples as they were decoded, and audio features of both waveforms."""
    recorded = golden.arrays(f"{FOLDER}features.npz")
    for number, clip in enumerate(recorded["clips"]):
        yield exact(f"{clip} pictures", found[str(clip)].frames, recorded[f"gray_{number}"])
        samples = recorded[f"waveform_{number}"] * 32768
        rounded = np.clip(np.round(samples), -32768, 32767).astype(np.int16)
        differ = np.abs(found[str(clip)].samples[: len(rounded)] - rounded.astype(float))
        yield Row(f"{clip} samples", float(differ.max()), ONE_STEP)
        as_floats, as_int16 = recorded[f"audio_open_{number}"], recorded[f"audio_reference_{number}"]
        yield close(f"{clip}, floats", audio_features(samples, len(as_floats), "float"), as_floats, MODULE)
        yield close(f"{clip}, int16", audio_features(rounded, len(as_int16), "int16"), as_int16, MODULE)
