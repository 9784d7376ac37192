"""Faces that are small in large pictures are found by a closer look, which costs little where there is nothing."""

import cv2
import numpy as np
import pytest
from real_videos import CUT, PHONE, SPEECH, first

from viavsp_jax.prepare.recordings.faces import FaceFinder, smallest_face
from viavsp_jax.prepare.recordings.tracks import follow

HD = 1080, 1920
DETECTED = 480 * 853  # pixels that the detector sees of one in HD


class Watched(FaceFinder):
    """Notes how many pixels the detector sees each time."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def _detect(self, view, picture, *threshold):
        self.seen.append(picture.size)
        return super()._detect(view, picture, *threshold)


def pasted(frames, height: int, shape=HD, at=(0.3, 0.3)):
    """Pictures of a shape with the speaker of PHONE, whose face is so many pixels high there."""
    for frame in frames:
        small = cv2.resize(frame, None, fx=height / 48, fy=height / 48, interpolation=cv2.INTER_AREA)
        top, left = (round(share * side) for share, side in zip(at, shape, strict=True))
        picture = np.full((*shape, 3), 128, np.uint8)
        picture[top : top + small.shape[0], left : left + small.shape[1]] = small
        yield picture


@pytest.fixture(scope="module")
def phone():
    """Pictures with one face, where it is in each, and its landmarks."""
    frames = first(PHONE, 26)
    faces = [found[0] for _, found in FaceFinder().faces(frames)]
    return frames, faces


@pytest.mark.parametrize(("height", "shape"), [(80, HD), (108, HD), (60, (1280, 720))])
def test_a_small_face_is_found_where_it_is(phone, height, shape):
    frames, expected = phone
    finder = Watched()
    found = [faces for _, faces in finder.faces(pasted(frames, height, shape))]
    assert not found[0] and all(len(faces) == 1 for faces in found[1:])  # in the first, nothing has moved yet
    corner = np.array([round(0.3 * shape[1]), round(0.3 * shape[0])])
    for (face,), old in zip(found[1:], expected[1:], strict=True):
        old = (old.landmarks + 0.5) * height / 48 - 0.5 + corner
        assert np.linalg.norm(face.landmarks - old, axis=1).mean() < 0.06 * height
        assert (face.box[:2] < face.landmarks[30]).all() and (face.landmarks[30] < face.box[2:]).all()
    # The whole at 480 pixels, the closer look where something moves, then only around the face.
    extra = [size for size in finder.seen if size not in (480 * 853, 480 * 854)]
    assert max(extra) < 4 * DETECTED and np.median(extra) < DETECTED


def test_where_nothing_moves_or_nobody_is_it_looks_closer_at_most_now_and_then(phone):
    (still,) = pasted(phone[0][:1], 80)
    finder = Watched()
    assert not any(faces for _, faces in finder.faces([still] * 60))
    assert max(finder.seen) <= 480 * 854
    moving = [cv2.resize(frame, HD[::-1]) for frame in first(CUT, 60)]
    finder = Watched()
    assert not any(faces for _, faces in finder.faces(moving))
    assert sum(size > 480 * 854 for size in finder.seen) <= 4


def test_where_faces_are_found_it_does_not_look_closer(phone):
    finder = Watched()
    assert all(faces for _, faces in finder.faces(pasted(phone[0], 240)))
    assert max(finder.seen) <= 480 * 854 and len(finder.seen) <= 10


def test_a_small_face_that_leaves_and_another_shot(phone):
    """A face of 80 pixels, nobody for 2 s, the face again elsewhere; then another shot with two large ones."""
    frames = phone[0]
    empty = np.full((*HD, 3), 128, np.uint8)
    large = [cv2.resize(frame, HD[::-1]) for frame in first(SPEECH, 10)]
    pictures = [*pasted(frames, 80), *[empty] * 50, *pasted(frames * 2, 80, at=(0.6, 0.6)), *large]
    tracks, shots, count = follow(FaceFinder().faces(pictures))
    assert shots == [0, 128] and count == 138
    first_one, again, *others = sorted(tracks, key=lambda track: track.first)
    assert first_one.indices == list(range(1, 26)) and first_one.faces[0].box[1] < 500
    assert 76 <= again.first <= 102 and again.last == 127 and again.faces[0].box[1] > 600
    assert [(track.first, track.last) for track in others] == [(128, 137)] * 2


def test_a_second_small_face_that_moves_later_is_found_too(phone):
    """For half a second, the one on the right stands still."""
    frames = phone[0] + phone[0][::-1]
    pictures = list(pasted(frames, 80))
    for picture, later in zip(pictures, pasted([frames[0]] * 12 + frames[:40], 80, at=(0.3, 0.7)), strict=True):
        picture[:, 1000:] = later[:, 1000:]
    early, late = follow(FaceFinder().faces(pictures))[0]
    assert early.first == 1 and early.faces[0].box[0] < 1000
    assert 6 < late.first <= 36 and late.last == early.last == 51 and late.faces[0].box[0] > 1300


@pytest.mark.parametrize(("size", "height"), [((1920, 1080), 60), ((2160, 3840), 120), ((1280, 720), 40)])
def test_the_smallest_face_follows_the_size(size, height):
    assert smallest_face(size) == height
