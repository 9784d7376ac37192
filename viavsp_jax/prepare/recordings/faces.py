"""Finds the faces in every picture of a video, with 68 landmarks each, by dlib.

The detector is dlib's, of frontal faces by HOG. It gets grey pictures of 480 pixels on the short side and finds faces
from a sixth of that side on. It runs on every fifth picture; where the same faces are found in two of them, the boxes
between are interpolated, else it runs on those between, too. The landmarks are predicted in every picture.

Measured on one core, with a recording of 320x240 (two faces, 26 and 20 pixels from eye to eye) and one of 176x144 (one
face, 33 pixels), and for the CNN with 25 pictures of each:

| detector | time for a picture | faces found, first | second |
|---|---|---|---|
| HOG, each picture | 28 to 30 ms | 100 % | 97 % |
| HOG, every fifth picture | 9 to 11 ms | 100 % | 97 % |
| CNN (mmod_human_face_detector) | 1,700 ms | 100 % | 100 % |

The landmarks of the second row differ from those of the first by 0.4 pixels on average, where the eyes are 90 pixels
apart. The CNN also finds faces that are turned away further, but takes a GPU to be of use.

The landmark model was trained on iBUG 300-W, whose licence bars commercial use.

Letters: H, W height and width of a picture.
"""

import dataclasses
import functools
import importlib.util
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import cv2
import numpy as np

from viavsp_jax.runtime.errors import InputError

LICENCE = (
    "Faces are found with dlib, whose 68-point landmark model was trained on iBUG 300-W: its licence bars "
    "commercial use."
)
_PACKAGES = {"dlib": "dlib-bin", "face_recognition_models": "face_recognition_models"}  # by module
SHORT_SIDE = 480  # pixels of the pictures that the detector sees
STEP = 5  # pictures from one run of the detector to the next
_THRESHOLD = -0.1  # of the detector's score
_SAME_FACE = 0.4  # least overlap (intersection over union) of the boxes of one face, a few pictures apart
_THUMBNAIL = 32, 18
_CUT = 30  # mean difference in grey levels between thumbnails, from which on they belong to two shots


@dataclasses.dataclass(frozen=True)
class Face:
    """A face in one picture, in its pixels."""

    box: np.ndarray  # float32[4]: left, top, right, bottom
    landmarks: np.ndarray  # float32[68, 2]: x, y


class FaceFinder:
    """The detector and the landmark predictor. The models are loaded once a process; threads need one finder each."""

    def __init__(self):
        """Raises InputError if dlib or its models are not installed."""
        require_packages()
        import dlib  # here, because a video of mouths needs no faces found

        self._rectangle = dlib.rectangle
        self._detector = dlib.get_frontal_face_detector()
        self._predictor = _load_predictor()

    def faces(self, frames: Iterable[np.ndarray]) -> Iterator[tuple[bool, list[Face]]]:
        """For each picture uint8[H, W, 3] (BGR): whether a shot begins with it, and the faces in it.

        Holds a few pictures at a time, small and grey.
        """
        boxes: list[np.ndarray] = []
        for begins, greys in _chunks(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY) for frame in frames):
            scale = SHORT_SIDE / min(greys[0].shape)
            method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
            pictures = [cv2.resize(grey, None, fx=scale, fy=scale, interpolation=method) for grey in greys]
            found = self._boxes(pictures, None if begins else boxes)
            for number, (picture, boxes) in enumerate(zip(pictures, found, strict=True)):
                yield begins and number == 0, [self._face(picture, box, scale) for box in boxes]

    def _boxes(self, pictures: Sequence[np.ndarray], before: list[np.ndarray] | None) -> list[list[np.ndarray]]:
        """The boxes float32[4] of the faces in each picture; `before` are those of the picture before the first."""
        last = self._detect(pictures[-1])
        pairs = match(before or [], last)
        if before is not None and len(pairs) == len(before) == len(last):
            weights = [(number + 1) / len(pictures) for number in range(len(pictures))]
            return [[(1 - weight) * before[i] + weight * last[j] for i, j in pairs] for weight in weights]
        return [*map(self._detect, pictures[:-1]), last]

    def _detect(self, picture: np.ndarray) -> list[np.ndarray]:
        found, _, _ = self._detector.run(picture, 0, _THRESHOLD)
        return [np.array([box.left(), box.top(), box.right(), box.bottom()], np.float32) for box in found]

    def _face(self, picture: np.ndarray, box: np.ndarray, scale: float) -> Face:
        shape = self._predictor(picture, self._rectangle(*(round(float(side)) for side in box)))
        points = np.array([(point.x, point.y) for point in shape.parts()], np.float32)
        # A pixel's coordinates are those of its centre.
        return Face((box + 0.5) / scale - 0.5, (points + 0.5) / scale - 0.5)


def require_packages() -> None:
    """Raises InputError if what finds faces is not installed."""
    if missing := [name for name in _PACKAGES if importlib.util.find_spec(name) is None]:
        raise InputError(f"{', '.join(missing)}: not installed, expected pip install {' '.join(_PACKAGES.values())}.")


@functools.cache
def _load_predictor() -> Callable:
    import dlib

    # Only located: to import the package takes pkg_resources, which new versions of setuptools do not have.
    package = importlib.util.find_spec("face_recognition_models")
    path = pathlib.Path(package.submodule_search_locations[0]) / "models" / "shape_predictor_68_face_landmarks.dat"
    return dlib.shape_predictor(str(path))


def match(before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> list[tuple[int, int]]:
    """Which boxes float32[4] are of one face, as pairs of indices: those that overlap most, each only once."""
    overlaps = [(_overlap(a, b), i, j) for i, a in enumerate(before) for j, b in enumerate(after)]
    pairs: list[tuple[int, int]] = []
    for overlap, i, j in sorted(overlaps, reverse=True):
        if overlap >= _SAME_FACE and all(i != other and j != another for other, another in pairs):
            pairs.append((i, j))
    return pairs


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union."""
    width, height = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    both = float(max(width, 0) * max(height, 0))
    areas = sum(float((box[2] - box[0]) * (box[3] - box[1])) for box in (a, b))
    return both / (areas - both)


def _chunks(pictures: Iterable[np.ndarray]) -> Iterator[tuple[bool, list[np.ndarray]]]:
    """Cuts grey pictures at each new shot, whose first one is alone and marked, and else after every STEP."""
    chunk, begins, before = [], True, None
    for picture in pictures:
        thumbnail = cv2.resize(picture, _THUMBNAIL, interpolation=cv2.INTER_AREA).astype(np.float32)
        if before is not None and np.abs(thumbnail - before).mean() > _CUT:
            if chunk:
                yield False, chunk
            chunk, begins = [], True
        before = thumbnail
        chunk.append(picture)
        if begins or len(chunk) == STEP:
            yield begins, chunk
            chunk, begins = [], False
    if chunk:
        yield False, chunk
