"""Mouth crops as AV-HuBERT was trained on, from the pictures of a recording.

Each picture is turned, scaled and shifted so that the corners of the eyes and the base of the nose lie where they lie
in a mean face; 96x96 grey pixels around the mouth are taken. The similarity transform comes from landmarks averaged
over 12 pictures, this one and those that follow, the centre of the crop from this picture's own.

The mean face that AV-HuBERT's authors used is not shipped; who has their file (68 points in a square of 256 pixels)
can give it. Else the points are those of the mean face published with dlib, with 90 pixels between the outer corners
of the eyes and thus 58 for the mouth: that size is an estimate, it was not compared with their file. How high the
points lie in the square makes no difference, as the crop follows the mouth.

Coordinates are x, y in pixels, those of a pixel being its centre. Letters: H, W height and width of a picture, T
pictures.
"""

import dataclasses
import tokenize
from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np
from etils import epath

from viavsp_jax.data.features import FRAME_RATE, FRAME_SIZE
from viavsp_jax.prepare.recordings.faces import FaceFinder, smallest_face
from viavsp_jax.prepare.recordings.recording import Recording
from viavsp_jax.prepare.recordings.tracks import Speaker, choose, fill, follow, loudness
from viavsp_jax.runtime.errors import InputError

STABLE_POINTS = [33, 36, 39, 42, 45]  # base of the nose, corners of the eyes
MOUTH = slice(48, 68)
LEAST_FOUND = 0.5  # share of the pictures in which a face has to be found
_BRIEF = FRAME_RATE // 2  # pictures; what is taken for a face for a shorter time is seldom one
_WINDOW = 12
_EYE_DISTANCE = 90
# Of dlib's mean face, in shares of its width.
_NOSE = 0.490127, 0.628106
_EYES = (0.121737, 0.216423), (0.334606, 0.231733), (0.645647, 0.231733), (0.858516, 0.216423)
_FINDING = 0.9  # share of the time that goes into finding faces


@dataclasses.dataclass(frozen=True)
class MouthTrack:
    """The mouth of the speaking face in each picture."""

    crops: np.ndarray  # uint8[T, 96, 96] grey
    # bool[T]: the face was seen, or missed for half a second at most; the others show where it is likely to be.
    found: np.ndarray
    # float32[T, 4]: the crop in the recording's own picture, as x and y of its centre, the length of its sides, and its
    # angle in degrees: cv2.boxPoints(((x, y), (side, side), angle)) are its corners.
    boxes: np.ndarray
    shown: np.ndarray  # bool[T]: not where there is no picture of that time, see Recording.shown_frames


def load_mean_face(path: epath.PathLike) -> np.ndarray:
    """Reads the 68 points of a mean face, x and y in a square of 256 pixels: float64[68, 2].

    Raises InputError if it is not an .npy file with such an array.
    """
    try:
        with epath.Path(path).open("rb") as file:
            points = np.lib.format.read_array(file, allow_pickle=False)
    # The last three by what its header says.
    except (OSError, ValueError, EOFError, MemoryError, OverflowError, tokenize.TokenError) as error:
        raise InputError(f"{path}: not a readable .npy file ({error}), expected the points of a mean face.") from error
    if points.shape != (68, 2) or points.dtype.kind not in "fiu" or not np.isfinite(points).all():
        raise InputError(f"{path}: holds {points.dtype}{list(points.shape)}, expected 68 points, floating [68, 2].")
    return points.astype(np.float64)


class NoFace(InputError):
    """There is no face in a recording, or in too little of it."""


def mouth_crops(
    recording: Recording,
    mean_face: np.ndarray | None = None,
    progress: Callable[[float], None] | None = None,
    least_found: float = LEAST_FOUND,
) -> MouthTrack:
    """Finds the speaking face in a recording and cuts its mouth out. A video of 96x96 is a mouth crop already.

    Holds a few pictures at a time, and the crops: 830 MB an hour.

    Args:
      mean_face: floating [68, 2], as `load_mean_face` gives it (default: our own).
      progress: called for each second of pictures with the share of the work that is done.
      least_found: share of the pictures in which a face has to be seen; 0 for any, `found` then tells where it is.

    Raises NoFace if there is no face in any or in too few of the pictures, InputError if there are no pictures or dlib
    is not installed.
    """
    if recording.size is None:
        raise InputError(f"{recording.path}: has sound only, so there is no mouth in it, expected a video.")
    if recording.size == (FRAME_SIZE, FRAME_SIZE):
        shown: list[bool] = []
        frames = _watched(recording, progress, 0.0, 1.0, shown)
        crops = np.stack([cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY) for frame in frames])
        return given_crops(crops, np.array(shown))
    speaker = _find_speaker(recording, progress, least_found)
    transforms = align(speaker.landmarks, speaker.starts, mean_face)
    centers = np.rint(apply(transforms, speaker.landmarks[:, MOUTH].mean(1)))
    crops = np.empty((len(centers), FRAME_SIZE, FRAME_SIZE), np.uint8)
    count, shown = 0, []
    # A damaged file may give a picture less when it is read again.
    for count, (frame, transform, center) in enumerate(
        zip(_watched(recording, progress, _FINDING, 1.0, shown), transforms, centers, strict=False), start=1
    ):
        crops[count - 1] = cut(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY), transform, center)
    boxes = _boxes(transforms, centers)
    return MouthTrack(crops[:count], speaker.found[:count], boxes[:count], np.array(shown[:count]))


def given_crops(crops: np.ndarray, shown: np.ndarray | None = None) -> MouthTrack:
    """The track of a video uint8[T, 96, 96] that is a mouth crop already; all of it is shown if nothing is said."""
    whole = np.float32([(FRAME_SIZE - 1) / 2, (FRAME_SIZE - 1) / 2, FRAME_SIZE, 0])
    everywhere = np.ones(len(crops), bool)
    return MouthTrack(crops, everywhere, np.tile(whole, (len(crops), 1)), everywhere if shown is None else shown)


def _find_speaker(
    recording: Recording, progress: Callable[[float], None] | None, least_found: float = LEAST_FOUND
) -> Speaker:
    found = FaceFinder().faces(_watched(recording, progress, 0.0, _FINDING, []))
    tracks, shots, num_frames = follow(found)
    lasting = [track for track in tracks if len(track.indices) >= min(_BRIEF, num_frames / 2)]
    loud = None if recording.samples is None else loudness(recording.samples, num_frames)
    speaker = fill(choose(lasting, loud), shots, num_frames) if lasting else None
    share = 0.0 if speaker is None else float(speaker.found.mean())
    if speaker is None or share < least_found:
        seen = f"a face is seen in only {100 * share:.0f} % of its pictures" if lasting else "no face is seen in it"
        wanted = f" in at least {100 * least_found:.0f} %" if lasting else ""
        raise NoFace(
            f"{recording.path}: {seen}, expected one that looks towards the camera and is at least "
            f"{smallest_face(recording.size)} pixels high from brows to chin{wanted} (the pictures are "
            f"{'x'.join(map(str, recording.size))})"
        )
    return speaker


def _watched(
    recording: Recording, progress: Callable[[float], None] | None, start: float, end: float, shown: list[bool]
) -> Iterator[np.ndarray]:
    """The pictures of a recording; `shown` gets whether each is of its time.

    Meanwhile the progress goes from `start`, each second of it, to `end`.
    """
    expected = max(1, recording.seconds * FRAME_RATE) if recording.seconds else float("inf")
    for number, (frame, is_shown) in enumerate(recording.shown_frames()):
        shown.append(is_shown)
        yield frame
        if progress and number % FRAME_RATE == 0:
            progress(start + (end - start) * min(1.0, number / expected))
    if progress:
        progress(end)


def align(landmarks: np.ndarray, starts: Sequence[int] = (0,), mean_face: np.ndarray | None = None) -> np.ndarray:
    """Transforms from pictures to the mean face: floating [T, 68, 2] -> complex128[T, 2].

    Points are complex numbers here, z = x + iy, and (a, b) is the similarity transform az + b: the one with the least
    squared distances. It comes from the mean of the landmarks of 12 pictures, or as many as there are before the next
    one of `starts`; the last 11 pictures before that share one.
    """
    target = _stable_face() if mean_face is None else mean_face[STABLE_POINTS]
    stable = landmarks[:, STABLE_POINTS].astype(np.float64)
    smooth = np.empty_like(stable)
    for start, end in zip(starts, [*starts[1:], len(stable)], strict=True):
        width = min(_WINDOW, end - start)
        sums = np.cumsum(np.concatenate([np.zeros_like(stable[:1]), stable[start:end]]), 0)
        means = (sums[width:] - sums[:-width]) / width
        smooth[start:end] = np.concatenate([means, np.repeat(means[-1:], width - 1, 0)])
    source, target = _complex(smooth), _complex(target)
    deviations = source - source.mean(1, keepdims=True)
    scale = (deviations.conj() * target).sum(1) / np.square(np.abs(deviations)).sum(1)
    return np.stack([scale, target.mean() - scale * source.mean(1)], 1)


def _stable_face() -> np.ndarray:
    """The stable points of our mean face: float64[5, 2]."""
    points = np.array([_NOSE, *_EYES])
    size = _EYE_DISTANCE / (_EYES[-1][0] - _EYES[0][0])
    return (points - points[0]) * size + (128, 148)


def _complex(points: np.ndarray) -> np.ndarray:
    return points[..., 0] + 1j * points[..., 1]


def apply(transforms: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Where points of pictures lie in the mean face: complex128[T, 2], floating [T, 2] -> float64[T, 2]."""
    moved = transforms[:, 0] * _complex(points) + transforms[:, 1]
    return np.stack([moved.real, moved.imag], 1)


def cut(grey: np.ndarray, transform: np.ndarray, center: np.ndarray) -> np.ndarray:
    """Grey picture uint8[H, W], complex128[2], centre in the mean face -> uint8[96, 96]; black outside the picture."""
    a, b = complex(transform[0]), complex(transform[1]) - complex(*(center - FRAME_SIZE // 2))
    # The warp looks at four pixels only: where it would skip some, they are averaged first.
    step = max(1, int(1 / abs(a)))
    if step > 1:
        height, width = (side // step for side in grey.shape)
        grey = cv2.resize(grey[: height * step, : width * step], (width, height), interpolation=cv2.INTER_AREA)
        a, b = a * step, b + a * (step - 1) * (1 + 1j) / 2
    matrix = np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])
    return cv2.warpAffine(grey, matrix, (FRAME_SIZE, FRAME_SIZE), flags=cv2.INTER_LINEAR)


def _boxes(transforms: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """As in MouthTrack."""
    a, b = transforms.T
    # The crop takes one pixel more before its centre than after it.
    middles = (_complex(centers - 0.5) - b) / a
    return np.stack([middles.real, middles.imag, FRAME_SIZE / np.abs(a), -np.angle(a, deg=True)], 1).astype(np.float32)
