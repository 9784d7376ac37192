"""Pictures that a container turns or mirrors, in all eight ways, are seen as a player shows them."""

import itertools
import struct

import numpy as np
import pytest
from real_videos import write_video

from viavsp_jax.prepare.recordings.recording import read_recording

ONE = 1 << 16


def scene(height=48, width=64):
    """A picture whose four corners are all different."""
    picture = np.full((height, width, 3), 30, np.uint8)
    picture[: height // 2, : width // 2] = 90
    picture[: height // 2, width // 2 :] = 150
    picture[height // 2 :, : width // 2] = 210
    return picture


def set_matrix(path, a, b, c, d):
    """Writes the matrix of the track's header (tkhd, version 0)."""
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 4
    assert content[place] == 0
    struct.pack_into(">9i", content, place + 40, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)


@pytest.mark.parametrize(("turned", "x", "y"), [*itertools.product([False, True], [1, -1], [1, -1])])
def test_the_matrix_of_a_container(tmp_path, turned, x, y):
    """x' = x·(column), y' = y·(row) or, turned, x' = x·(row), y' = y·(column), as ISO/IEC 14496-12 has it."""
    shown = scene()
    stored = shown[::y, ::x]
    stored = stored.transpose(1, 0, 2) if turned else stored
    path = write_video(tmp_path / "a.mp4", [stored] * 3, codec="libx264")
    set_matrix(path, *((0, y * ONE, x * ONE, 0) if turned else (x * ONE, 0, 0, y * ONE)))
    recording = read_recording(path)
    assert recording.size == (64, 48)
    for frame in recording.frames():
        assert np.abs(frame.astype(int) - shown)[4:-4, 4:-4].mean() < 3
        for picked in (np.s_[4:20, 4:28], np.s_[4:20, 36:60], np.s_[28:44, 4:28], np.s_[28:44, 36:60]):
            assert np.abs(frame[picked].astype(int).mean() - shown[picked].mean()) < 4


@pytest.mark.parametrize("angle", [0, 90, 180, 270])
def test_ffmpegs_own_rotation(tmp_path, angle):
    """A picture that is stored turned to the right by the angle, as a phone does, and says so."""
    path = write_video(tmp_path / "a.mp4", [np.rot90(scene(), angle // 90)] * 2, rotation=-angle, codec="libx264")
    frame = next(read_recording(path).frames())
    assert (
        np.abs(frame[4:20, 4:28].astype(int) - 90).mean() < 4 and np.abs(frame[4:20, 36:].astype(int) - 150).mean() < 4
    )
