"""Finds the faces in every picture of a video, with 68 landmarks each, by dlib.

The detector is dlib's, of frontal faces by HOG. It gets grey pictures of 480 pixels on the short side and finds faces
from a sixth of that side on. It runs on every fifth picture; where the same faces are found in two of them, the boxes
between are interpolated, else it runs on those between, too. The landmarks are predicted in every picture.

Where it finds none, it looks closer, at up to 1440 pixels on the short side and twice the picture's own size: it finds
faces from an eighteenth of that side and 40 pixels on. It does so when a shot begins and then ever less often, down to
once in four seconds, and only where the picture has changed since; in between, only around the faces that it has found.

Measured on one core, with a recording of 320x240 (two faces, 26 and 20 pixels from eye to eye) and one of 176x144 (one
face, 33 pixels), and for the CNN with 25 pictures of each:

| detector | time for a picture | faces found, first | second |
|---|---|---|---|
| HOG, each picture | 28 to 30 ms | 100 % | 97 % |
| HOG, every fifth picture | 9 to 11 ms | 100 % | 97 % |
| CNN (mmod_human_face_detector) | 1,700 ms | 100 % | 100 % |

The landmarks of the second row differ from those of the first by 0.4 pixels on average, where the eyes are 90 pixels
apart. The CNN also finds faces that are turned away further, but takes a GPU to be of use.

The closer look, in the same way, at pictures of 1920x1080 into which the faces of both recordings were pasted, 4 s
each:

| pictures | without it: time, faces found | with it |
|---|---|---|
| face of 80 pixels, nothing else moves | 11 ms, 0 % | 14 ms, 97 to 99 % |
| face of 160 pixels | 12 to 13 ms, 98 to 100 % | 13 to 15 ms, 98 to 100 % |
| no face, all of it moves, shots of 1 to 2 s | 11 ms | 19 ms |
| no face, all of it moves, one shot of 12 s | 11 ms | 12 ms |

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

from viavsp_jax.data.features import FRAME_RATE
from viavsp_jax.runtime.errors import InputError

LICENCE = (
    "Faces are found with dlib, whose 68-point landmark model was trained on iBUG 300-W: its licence bars "
    "commercial use."
)
_PACKAGES = {"dlib": "dlib-bin", "face_recognition_models": "face_recognition_models"}  # by module
SHORT_SIDE = 480  # pixels of the pictures that the detector sees
_FINE_SIDE = 1440  # the same for a closer look
_MOST_ENLARGED = 2.0  # for a closer look: of faces under 40 pixels, the lips cannot be read
_SMALLEST = 80  # pixels of the faces that the detector finds
_LONGEST_WAIT = 4 * FRAME_RATE  # pictures from one closer look to the next
_BLUR, _MOVED = 5, 10  # pixels over which noise is averaged, and grey levels by which what moves then differs
STEP = 5  # pictures from one run of the detector to the next
# Of the detector's score, and where a small face is first seen: those score 0.3 to 2, and texture and text up to 0.35.
_THRESHOLD, _SURE = -0.1, 0.4
_SAME_FACE = 0.4  # least overlap (intersection over union) of the boxes of one face, a few pictures apart
_THUMBNAIL = 32, 18
_CUT = 30  # mean difference in grey levels between thumbnails, from which on they belong to two shots


@dataclasses.dataclass(frozen=True)
class Face:
    """A face in one picture, in its pixels."""

    box: np.ndarray  # float32[4]: left, top, right, bottom
    landmarks: np.ndarray  # float32[68, 2]: x, y


@dataclasses.dataclass(frozen=True)
class _View:
    """A part of a picture, and how large the detector gets to see it."""

    left: int
    top: int
    right: int
    bottom: int
    scale: float

    def of(self, grey: np.ndarray) -> np.ndarray:
        """uint8[H, W] -> what is seen of it."""
        method = cv2.INTER_AREA if self.scale < 1 else cv2.INTER_LINEAR
        part = grey[self.top : self.bottom, self.left : self.right]
        return cv2.resize(part, None, fx=self.scale, fy=self.scale, interpolation=method)

    def into(self, points: np.ndarray) -> np.ndarray:
        """Points [..., 2] of the picture in the view. A pixel's coordinates are those of its centre."""
        return (points - (self.left, self.top) + 0.5) * self.scale - 0.5

    def back(self, points: np.ndarray) -> np.ndarray:
        """Points [..., 2] of the view in the picture."""
        return ((points + 0.5) / self.scale - 0.5 + (self.left, self.top)).astype(np.float32)


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

        Holds a few pictures at a time, grey.
        """
        for begins, greys in _chunks(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY) for frame in frames):
            if begins:
                shot = _Shot(greys[0], self._detect)
            view, found = shot.look(greys)
            for number, (grey, boxes) in enumerate(zip(greys, found, strict=True)):
                picture = view.of(grey) if boxes else None
                yield begins and number == 0, [self._face(picture, box, view) for box in boxes]

    def _detect(self, view: _View, picture: np.ndarray, threshold: float = _THRESHOLD) -> list[np.ndarray]:
        """The boxes float32[4], in the picture that the view is of."""
        found, _, _ = self._detector.run(picture, 0, threshold)
        corners = [np.float32([[box.left(), box.top()], [box.right(), box.bottom()]]) for box in found]
        return [view.back(pair).reshape(4) for pair in corners]

    def _face(self, picture: np.ndarray, box: np.ndarray, view: _View) -> Face:
        corners = view.into(box.reshape(2, 2)).reshape(4)
        shape = self._predictor(picture, self._rectangle(*(round(float(side)) for side in corners)))
        points = np.array([(point.x, point.y) for point in shape.parts()], np.float32)
        return Face(box, view.back(points))


class _Shot:
    """Looks for faces in one shot, a few pictures after the others, and remembers where they were."""

    def __init__(self, first: np.ndarray, detect: Callable[..., list[np.ndarray]]):
        """Begins with the picture uint8[H, W]. `detect` is FaceFinder._detect."""
        height, width = first.shape
        self._detect = detect
        self._whole = _View(0, 0, width, height, _scale((width, height)))
        self._fine = _fine_scale((width, height))
        self._boxes: list[np.ndarray] | None = None  # of the picture before
        self._near: _View | None = None  # around the faces, if they are small
        self._compared = self._whole.of(first)  # as it was at the last closer look
        self._since, self._wait = 0, STEP  # pictures since then, and until the next one

    def look(self, greys: Sequence[np.ndarray]) -> tuple[_View, list[list[np.ndarray]]]:
        """The boxes float32[4] of the faces in each of the next pictures, and the view in which they were found."""
        view, picture = self._whole, self._whole.of(greys[-1])
        last = self._detect(view, picture)
        if not last and self._fine > view.scale:
            self._since += len(greys)
            last = self._look_closer(greys[-1], picture)
            view = self._near or view
        elif last:
            self._since, self._wait = 0, FRAME_RATE
            self._near = self._near and self._around(last)
        before, self._boxes = self._boxes, last
        pairs = match(before or [], last)
        if before is not None and len(pairs) == len(before) == len(last):
            weights = [(number + 1) / len(greys) for number in range(len(greys))]
            return view, [[(1 - weight) * before[i] + weight * last[j] for i, j in pairs] for weight in weights]
        return view, [*(self._detect(view, view.of(grey)) for grey in greys[:-1]), last]

    def _look_closer(self, grey: np.ndarray, picture: np.ndarray) -> list[np.ndarray]:
        """Where small faces were and, when it is time, wherever something has moved: a mouth that speaks does."""
        last = self._detect(self._near, self._near.of(grey)) if self._near else []
        if self._near and not last:
            self._wait = FRAME_RATE
        if self._since >= self._wait:
            moved = self._moved(picture)
            self._since, self._wait = 0, min(2 * self._wait, _LONGEST_WAIT)
            self._compared, self._near = picture, None
            others = self._detect(moved, moved.of(grey), _SURE) if moved else []
            known = [j for _, j in match(last, others)]
            last += [box for j, box in enumerate(others) if j not in known]
        if last:
            self._near = self._around(last)
        return last

    def _moved(self, picture: np.ndarray) -> _View | None:
        """The part of the picture that is another than it was, with room for a face around it."""
        smooth, before = (cv2.blur(one, (_BLUR, _BLUR)) for one in (picture, self._compared))
        changed = cv2.absdiff(smooth, before) >= _MOVED
        if not changed.any():
            return None
        rows, columns = (np.flatnonzero(changed.any(axis)) for axis in (1, 0))
        corners = self._whole.back(np.float32([[columns[0], rows[0]], [columns[-1], rows[-1]]]))
        return self._part(corners[0], corners[1], _SMALLEST / self._whole.scale)

    def _around(self, boxes: Sequence[np.ndarray]) -> _View:
        sides = np.stack(boxes)
        return self._part(sides[:, :2].min(0), sides[:, 2:].max(0), (sides[:, 3] - sides[:, 1]).max())

    def _part(self, top_left: np.ndarray, bottom_right: np.ndarray, margin: float) -> _View:
        """With the corners float[2] and so many pixels more on each side, at the fine scale."""
        left, top = np.maximum(0, np.floor(top_left - margin)).astype(int)
        right, bottom = np.ceil(bottom_right + margin).astype(int)
        return _View(left, top, min(right, self._whole.right), min(bottom, self._whole.bottom), self._fine)


def smallest_face(size: tuple[int, int]) -> int:
    """Height in pixels, from the brows to the chin, from which on faces are found in pictures of a width and height."""
    return round(_SMALLEST / max(_scale(size), _fine_scale(size)))


def _scale(size: tuple[int, int]) -> float:
    return SHORT_SIDE / min(size)


def _fine_scale(size: tuple[int, int]) -> float:
    return min(_FINE_SIDE / min(size), _MOST_ENLARGED)


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
