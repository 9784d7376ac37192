"""What is odd about clips of others: they are read as a player shows them, or left out, and cost no other clip."""

import io
import unicodedata
from fractions import Fraction

import av
import numpy as np
import pytest
from open_corpus import TRAIN, encoded, encoded_as, few, write_archive

from viavsp_jax.data import media
from viavsp_jax.prepare.__main__ import main
from viavsp_jax.prepare.features.reading import read_media
from viavsp_jax.prepare.manifest_files import read_manifest
from viavsp_jax.prepare.recordings.clip import read_clip
from viavsp_jax.prepare.recordings.mouth_video import write_video
from viavsp_jax.prepare.skipped import read_skipped


def manifest(data, output, *options):
    main(["manifest", "--data", str(data), "--output", str(output), "--workers", "0", *options])


def odd(samples):
    """One sample of each kind, by key, and what becomes of it: a part of the reason, or None where it is used."""
    keys = iter(samples)
    good = {next(keys): None}
    frames, sound = (
        np.repeat(np.arange(0, 60, dtype=np.uint8) * 4, 96 * 96).reshape(60, 96, 96),
        np.zeros(38_400, int),
    )
    sound[1000:] = (8000 * np.sin(np.arange(37_400) / 9)).astype(int)
    stereo = np.stack([sound, sound], 1).repeat(3, 0)  # of 48 kHz, an octave and a half lower, of thrice the length
    changes = {
        "no label": ({"label": None}, "no transcript: "),
        "no video": ({"video": None}, "no video: "),
        "txt for label": ({"label": None, "txt": "câu một".encode()}, None),
        "mp4 for video": ({"video": None, "mp4": encoded(frames, sound)}, None),
        "truncated": ({"video": samples[next(keys)]["video"][:-5000]}, "unreadable: "),
        "no mp4": ({"video": b"<html>404</html>"}, "not a media file that can be read"),
        "30 fps": ({"video": encoded_as(frames, sound[:32_000, None], fps=30)}, None),
        "48 kHz stereo": ({"video": encoded_as(frames, stereo[: 48_000 * 60 // 25], rate=48_000)}, None),
        "160x160": (
            {"video": encoded_as(np.zeros((60, 160, 160), np.uint8), sound[:, None])},
            "is 160x160, expected 96x96",
        ),
        "no sound": ({"video": _silent_film(frames)}, "no sound: "),
        "NFD": ({"label": unicodedata.normalize("NFD", "Ðà Nẵng\u200b\n").encode()}, None),
        "not UTF-8": ({"label": b"\xff\xfe\0"}, "no transcript: b'"),
        "20 s": ({"video": encoded(np.resize(frames, (500, 96, 96)), np.resize(sound, 320_000))}, None),
        "too long": ({"video": encoded(np.resize(frames, (501, 96, 96)), np.resize(sound, 320_640))}, "too long: 501"),
        "id of another": ({"sample_id": samples[next(iter(samples))]["sample_id"]}, "repeated id: "),
        "id with a path": ({"sample_id": b"p1/spk/../x"}, None),
        "id with a tab": ({"sample_id": b"a\tb\0"}, "unusable id: "),
    }
    base = samples[next(keys)]
    made = {key: samples[key] for key in good}
    for name, (change, _) in changes.items():
        sample = {**base, "sample_id": name.encode()} | change
        made[name] = {suffix: content for suffix, content in sample.items() if content is not None}
    return made, good | {name: reason for name, (_, reason) in changes.items()}


def _silent_film(frames):
    file = io.BytesIO()
    write_video(file, frames)
    return file.getvalue()


@pytest.fixture(scope="module")
def oddities(tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd [1]")
    made, outcomes = odd(few(TRAIN, 4))
    write_archive(folder / "corpus/c-train-000000.tar", made)
    manifest(folder / "corpus", folder / "manifest")
    return folder, outcomes


def test_oddities_cost_no_other_clip(oddities):
    folder, outcomes = oddities
    clips = {clip.id: clip for clip in read_manifest(folder / "manifest", "train")}
    skipped = read_skipped(folder / "manifest")
    used = [name for name, reason in outcomes.items() if reason is None]
    assert len(clips) == len(used) and len(skipped) == len(outcomes) - len(used)
    for name, reason in outcomes.items():
        if reason:
            ids = {"id of another": next(iter(clips)), "id with a tab": "a b\0"}
            (line,) = [line for line in skipped if line["id"] == ids.get(name, name)]
            assert reason in line["reason"], line
    assert clips["NFD"].transcript == "Đà Nẵng" and clips["txt for label"].transcript == "câu một"
    assert clips["20 s"].num_frames == 500 and "p1_spk_.._x" in clips


def test_odd_media_are_read_as_a_player_shows_them(oddities):
    folder, _ = oddities
    clips = {clip.id: clip for clip in read_manifest(folder / "manifest", "train")}
    fast, stereo = (read_media(clips[name]) for name in ("30 fps", "48 kHz stereo"))
    # 60 pictures of 30 a second last two seconds.
    assert len(fast.frames) == clips["30 fps"].num_frames == 50
    pictures = media.read_video(clips["30 fps"].video)
    np.testing.assert_array_equal(fast.frames, pictures[((2 * np.arange(50) + 1) * 30 - 1) // 50])
    assert np.diff(pictures[:, 40, 40].astype(int)).min() > 0, "each is brighter than the one before"
    again = folder / "again.mp4"
    again.write_bytes(fast.video)  # what a record holds is of these frames, at 25 a second
    assert np.abs(read_clip(str(again), clips["mp4 for video"].audio).frames - fast.frames.astype(int)).mean() < 2
    # A third of the samples, at a third of the rate: the same tone.
    assert abs(len(stereo.samples) - 38_400) < 1100
    spectrum = np.abs(np.fft.rfft(stereo.samples[2000:34_000].astype(float)))
    assert abs(np.argmax(spectrum) / 32_000 * 16_000 - 16_000 / 9 / 2 / np.pi) < 2


def test_frames_that_do_not_come_steadily_are_shown_when_they_are_shown(tmp_path):
    """25 a second on average, as browsers and telephones record: sound and picture stay in step."""
    times = [*range(30), *range(40, 70)]  # a gap of 0.4 s
    frames = np.zeros((60, 96, 96), np.uint8)
    frames[30:] = 255
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 96, 96, "yuv420p"
        sound = container.add_stream("aac", rate=16_000, layout="mono")
        for picture, time in zip(frames, times, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, "gray").reformat(format="yuv420p")
            frame.pts, frame.time_base = time, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        for start in range(0, 44_800, 1024):
            part = np.zeros((1, min(1024, 44_800 - start)), np.float32)
            frame = av.AudioFrame.from_ndarray(part, "fltp", "mono")
            frame.sample_rate, frame.pts = 16_000, start
            container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    sample = few(TRAIN, 1).popitem()[1] | {"video": file.getvalue()}
    write_archive(tmp_path / "c/train-000.tar", {"a": sample})
    manifest(tmp_path / "c", tmp_path / "out")
    (clip,) = read_manifest(tmp_path / "out", "train")
    read = read_media(clip)
    assert len(read.frames) == clip.num_frames == 70
    assert int((read.frames.mean((1, 2)) > 128).argmax()) == 40
