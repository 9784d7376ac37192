"""Follows faces from picture to picture, chooses the one that speaks, and fills the pictures in which it was missed.

A face that is one of several speaks if its mouth opens and closes most and, where there is sound, opens when it is
loud; among faces that do so about as much, the largest speaks. A track is of one face in one shot, and it is judged as
a whole: of two people who take turns in front of one camera, only one is followed.

Recordings may be out of step by 0.4 s. The shift is looked for, one for the whole recording: a silent face, too, fits
the sound at some shift, but seldom at the one that fits the speaker. The right choices, in percent, of 100 in videos of
5 s, each made of a speaker and another face side by side, one larger than the other: someone silent, someone else who
talks, or the speaker at another time.

| the sound is late by | -0.4 s | -0.2 s | 0 | 0.2 s | 0.4 s |
|---|---|---|---|---|---|
| covariance, no shift | 83 | 94 | 97 | 73 | 20 |
| a shift for each track | 96 | 100 | 99 | 90 | 80 |
| one shift | 98 | 100 | 100 | 100 | 94 |

Letters: T pictures, m pictures of one track.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from viavsp_jax.data.features import FRAME_RATE
from viavsp_jax.prepare.recordings.faces import Face, match
from viavsp_jax.prepare.recordings.sound import levels

_LONGEST_GAP = FRAME_RATE  # pictures in which a face may be missed before it counts as another
_MOMENT = FRAME_RATE // 2  # pictures in which a face may be missed and is where it was before and is after
_TIE = 0.5  # a face that moves by this share of the most active one's movement may be the speaker, too
_MOST_SHIFT = 10  # pictures by which the sound may be early or late
_SMOOTHING = 5  # pictures over which mouth and loudness are averaged before they are compared
_OUTER_EYES = 36, 45
_UPPER_LIP, _LOWER_LIP = [61, 62, 63], [67, 66, 65]
_QUIET = 10.0  # added to the amplitude (of 32,768) before the logarithm


@dataclasses.dataclass
class Track:
    """One face in one shot: the pictures in which it was found, and where."""

    indices: list[int]  # ascending
    faces: list[Face]

    @property
    def first(self) -> int:
        return self.indices[0]

    @property
    def last(self) -> int:
        return self.indices[-1]

    def landmarks(self) -> np.ndarray:
        """float32[m, 68, 2]"""
        return np.stack([face.landmarks for face in self.faces])


@dataclasses.dataclass(frozen=True)
class Speaker:
    """Where the speaking face is in each picture of a video."""

    landmarks: np.ndarray  # float32[T, 68, 2]
    # bool[T]: it was seen there, or missed for a moment; the others are interpolated within a track and held elsewhere.
    found: np.ndarray
    starts: list[int]  # pictures at which another track begins, from 0 on: nothing is smoothed across these


def follow(found: Iterable[tuple[bool, list[Face]]]) -> tuple[list[Track], list[int], int]:
    """Links what `FaceFinder.faces` gives. Returns the tracks, the pictures at which shots begin, and T."""
    tracks: list[Track] = []
    live: list[Track] = []
    shots: list[int] = []
    index = -1
    for index, (begins, faces) in enumerate(found):
        if begins:
            shots.append(index)
            live = []
        live = [track for track in live if index - track.last <= _LONGEST_GAP]
        pairs = match([track.faces[-1].box for track in live], [face.box for face in faces])
        known = {j: live[i] for i, j in pairs}
        for j, face in enumerate(faces):
            if j not in known:
                known[j] = Track([], [])
                tracks.append(known[j])
                live.append(known[j])
            known[j].indices.append(index)
            known[j].faces.append(face)
    return tracks, shots, index + 1


def loudness(samples: np.ndarray, num_frames: int) -> np.ndarray:
    """Logarithm of the amplitude of speech int16[n] during each picture: float64[num_frames]."""
    heard = levels(samples)[:num_frames]
    return np.log(np.pad(heard, (0, num_frames - len(heard))) + _QUIET)


def activities(tracks: Sequence[Track], loud: np.ndarray | None) -> np.ndarray:
    """How much the mouth of each track opens and closes, in all its pictures together; with sound, together with it.

    The opening is measured in distances of the eyes. Without sound its standard deviation counts, with the loudness
    float64[T] its covariance with the standardised loudness, if positive, weighed by the share of the movement that the
    loudness explains: at that shift of the sound, one for all tracks, at which the sum over them is greatest.

    Returns float64[number of tracks].
    """
    openings = [_opening(track) for track in tracks]
    lengths = np.array([len(opening) for opening in openings])
    if loud is None:
        return lengths * [opening.std() for opening in openings]
    heard = np.pad(_smooth(loud), _MOST_SHIFT, "edge")
    shifts = np.arange(2 * _MOST_SHIFT + 1)
    table = np.stack(
        [
            _agreement(opening, heard[np.array(track.indices) + shifts[:, None]])
            for track, opening in zip(tracks, openings, strict=True)
        ]
    )
    table *= lengths[:, None]
    return table[:, np.argmax(table.sum(0))]


def _opening(track: Track) -> np.ndarray:
    """How far the mouth is open, in distances of the eyes: float64[m], less their mean."""
    landmarks = track.landmarks()
    eyes = np.linalg.norm(landmarks[:, _OUTER_EYES[1]] - landmarks[:, _OUTER_EYES[0]], axis=1)
    gaps = np.linalg.norm(landmarks[:, _UPPER_LIP] - landmarks[:, _LOWER_LIP], axis=2).mean(1)
    opening = _smooth(gaps / np.median(eyes))
    return opening - opening.mean()


def _agreement(opening: np.ndarray, heard: np.ndarray) -> np.ndarray:
    """Covariance of the opening with each standardised row, times their squared correlation: [m], [n, m] -> [n]."""
    heard = heard - heard.mean(1, keepdims=True)
    spread = opening.std() * heard.std(1)
    correlation = np.maximum(0, heard @ opening / len(opening)) / np.where(spread > 0, spread, 1)
    return opening.std() * correlation**3


def _smooth(values: np.ndarray) -> np.ndarray:
    """The mean over neighbouring values, fewer of them at the ends."""
    window = np.ones(min(_SMOOTHING, len(values)))
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")


def choose(tracks: Sequence[Track], loud: np.ndarray | None) -> list[Track]:
    """The tracks of the speaking face, no two at the same time, in the order of time."""
    if not tracks:
        return []
    left = [(*pair, track) for *pair, track in zip(activities(tracks, loud), map(_size, tracks), tracks, strict=True)]
    chosen: list[Track] = []
    while left:
        most = max(active for active, _, _ in left)
        _, best = max(((size, track) for active, size, track in left if active >= _TIE * most), key=lambda one: one[0])
        chosen.append(best)
        left = [one for one in left if one[2].first > best.last or one[2].last < best.first]
    return sorted(chosen, key=lambda track: track.first)


def _size(track: Track) -> float:
    """The area of the face, summed over its pictures."""
    return float(sum((face.box[2] - face.box[0]) * (face.box[3] - face.box[1]) for face in track.faces))


def fill(chosen: Sequence[Track], shots: Sequence[int], num_frames: int) -> Speaker:
    """Landmarks for every picture, from tracks of which there is at least one.

    Between two tracks, the first is held until the last shot before the second one begins or, in the same shot, until
    the second one itself.
    """
    starts = [0]
    for before, after in zip(chosen, chosen[1:], strict=False):
        starts.append(max([shot for shot in shots if before.last < shot <= after.first], default=after.first))
    landmarks = np.empty((num_frames, 68, 2), np.float32)
    found = np.zeros(num_frames, bool)
    for track, start, end in zip(chosen, starts, [*starts[1:], num_frames], strict=True):
        points = track.landmarks().reshape(len(track.indices), -1)
        here = np.arange(start, end)
        columns = [np.interp(here, track.indices, column) for column in points.T]
        landmarks[start:end] = np.stack(columns, 1).reshape(-1, 68, 2)
        found[track.indices] = True
        for before, after in itertools.pairwise(track.indices):
            if after - before <= _MOMENT + 1:
                found[before:after] = True
    return Speaker(landmarks, found, starts)
