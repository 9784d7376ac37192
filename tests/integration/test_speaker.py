"""Which of several faces speaks: real clips side by side, with the sound early and late."""

import cv2
import numpy as np
import pytest
from real_videos import PHONE, SPEECH, first, write_video

from viavsp_jax.prepare.recordings.faces import FaceFinder
from viavsp_jax.prepare.recordings.mouth import mouth_crops
from viavsp_jax.prepare.recordings.recording import read_recording
from viavsp_jax.prepare.recordings.tracks import Track, choose, follow, loudness

START, COUNT = 47, 125  # of the pictures of SPEECH that are used
FRAME = 640  # samples in one picture's time
SHIFTS = (-10, -8, -5, -2, 0, 2, 5, 8, 10)  # pictures by which the sound is late


def speaker(start: int = START, count: int = COUNT) -> list[np.ndarray]:
    """The speaker of SPEECH alone, 110x120 pixels, with a face of 38; after the end, from the beginning again."""
    return [frame[:110, 160:280] for frame in (2 * first(SPEECH, 219))[start : start + count]]


def other(count: int = COUNT) -> list[np.ndarray]:
    """The man of PHONE, with a face of 48 pixels; he talks forth and back."""
    frames = first(PHONE, 100)
    return [(frames + frames[::-1])[number % 200] for number in range(count)]


def side_by_side(left, right, heights: tuple[int, int]) -> list[np.ndarray]:
    """Pictures of 240x480, clips of such heights in them."""
    pictures = []
    for pair in zip(left, right, strict=True):
        picture = np.full((240, 480, 3), 128, np.uint8)
        for column, frame, height in zip((0, 240), pair, heights, strict=True):
            small = cv2.resize(frame, (round(frame.shape[1] * height / frame.shape[0]), height))[:, :240]
            picture[:height, column : column + small.shape[1]] = small
        pictures.append(picture)
    return pictures


def late(shift: int) -> np.ndarray:
    """The sound of those pictures, so many pictures later."""
    return read_recording(SPEECH).samples[(START - shift) * FRAME :][: COUNT * FRAME]


def middle(track: Track) -> float:
    """Where a face is, from left to right."""
    return float(np.mean([face.box[[0, 2]].mean() for face in track.faces]))


LAYOUTS = {
    "as it was": (lambda: first(SPEECH, START + COUNT)[START:], lambda x: x > 160),
    "beside a larger man": (lambda: side_by_side(speaker(), other(), (110, 180)), lambda x: x < 240),
    "beside a smaller man, swapped": (lambda: side_by_side(other(), speaker(), (120, 200)), lambda x: x > 240),
    "beside another time": (lambda: side_by_side(speaker(), speaker(START + 110), (110, 160)), lambda x: x < 240),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_speaker_is_found_with_the_sound_early_and_late(layout):
    make, is_speaker = LAYOUTS[layout]
    tracks, _, count = follow(FaceFinder().faces(make()))
    tracks = [track for track in tracks if len(track.indices) > COUNT / 2]
    assert len(tracks) == 2 and count == COUNT
    chosen = {shift: choose(tracks, loudness(late(shift), COUNT)) for shift in SHIFTS}
    assert {shift: is_speaker(middle(track)) for shift, (track,) in chosen.items()} == dict.fromkeys(SHIFTS, True)


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_phone_held_upright_and_mirrored(tmp_path, mirrored):
    """Its pictures lie on their side in the file; a small man talks in a corner of them, too."""
    pictures = []
    for big, small in zip(speaker(0, 60), other(60), strict=True):
        picture = cv2.resize(big, (480, 440))
        picture = np.concatenate([picture, np.full((280, 480, 3), 60, np.uint8)])
        picture[480:720, 100:420] = cv2.resize(small, (320, 240))
        picture = picture[:, ::-1] if mirrored else picture
        pictures.append(np.ascontiguousarray(np.rot90(picture, -1)))
    samples = read_recording(SPEECH).samples[: 60 * FRAME]
    path = write_video(tmp_path / "phone.mov", pictures, samples=samples, rotation=90, codec="mpeg4")
    recording = read_recording(path)
    assert recording.size == (480, 720)
    track = mouth_crops(recording)
    assert track.found.all() and (track.boxes[:, 1] < 440).all()
    assert ((track.boxes[:, 0] > 240) == (track.boxes[0, 0] > 240)).all()


def test_what_is_taken_for_a_face_for_a_moment_only_is_none(tmp_path):
    """A face for 0.3 s and, after a cut, for 1 s in a recording without any other."""
    nobody = np.full((240, 320, 3), 90, np.uint8)
    pictures = [nobody] * 20 + first(SPEECH, 8) + [nobody] * 20 + first(SPEECH, 25)
    track = mouth_crops(read_recording(write_video(tmp_path / "moment.mkv", pictures)), least_found=0)
    assert track.found.tolist() == [False] * 48 + [True] * 25
