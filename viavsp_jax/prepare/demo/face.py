"""A 96x96 mouth drawn at 25 fps from the phoneme timings of an utterance.

Drawing is in skin units: 1 unit is one pixel of the 96x96 crop at scale 1, the mouth's centre is (0, 0), y
points down.
"""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from viavsp_jax.data.features import FRAME_RATE
from viavsp_jax.prepare.demo.speech import Phoneme
from viavsp_jax.prepare.demo.visemes import articulate

SIZE = 96

_SUPERSAMPLING = 2
_HALF = 64  # half side of the drawn skin, units
_CANVAS = 2 * _HALF * _SUPERSAMPLING
_FIXED_POINT_BITS = 4
_UPPER_LIP, _LOWER_LIP = 6.8, 9.2  # thickness in the middle at rest, units
_NUM_OUTER_LAYERS = 6  # lips and the line between them; tongue and teeth come after
_CURVE = np.linspace(-1, 1, 25)  # a lip line runs from corner to corner


@dataclass(frozen=True)
class Face:
    """What a speaker looks like. Colours are BGR 0 to 255, lengths in units of the skin."""

    texture_seed: int
    skin: tuple[float, float, float]
    lips: tuple[float, float, float]
    half_width: float
    lip_thickness: float
    opening: float  # inner gap of a fully open mouth
    folds: float  # depth of the lines from nose to mouth
    stubble: float  # 0 none to 1 dense
    light_angle: float  # radians
    light_contrast: float
    scale: float
    position: tuple[float, float]

    @classmethod
    def random(cls, seed: int) -> "Face":
        """A face, the same for the same seed."""
        rng = np.random.default_rng([seed, 96])
        darkness = rng.uniform(0, 1)
        skin = np.array([150, 178, 222]) * (1 - darkness) + np.array([62, 88, 132]) * darkness
        skin = skin * rng.uniform(0.94, 1.06, 3)
        lips = skin * np.array([0.78, 0.66, 0.90]) * rng.uniform([0.88, 0.85, 0.95], [1.08, 1.12, 1.05])
        return cls(
            texture_seed=seed,
            skin=tuple(skin.tolist()),
            lips=tuple(lips.tolist()),
            half_width=rng.uniform(21, 26),
            lip_thickness=rng.uniform(0.85, 1.2),
            opening=rng.uniform(15, 19),
            folds=rng.uniform(0.02, 0.12),
            stubble=float(rng.uniform(0.3, 1) * (rng.random() < 0.3)),
            light_angle=rng.uniform(0, 2 * np.pi),
            light_contrast=rng.uniform(0.05, 0.22),
            scale=rng.uniform(1.02, 1.25),
            position=tuple(rng.uniform(-4, 4, 2).tolist()),
        )


@functools.lru_cache(maxsize=64)
def _draw_skin(face: Face) -> np.ndarray:
    """The face without its mouth: uint8[canvas, canvas, 3]."""
    rng = np.random.default_rng(face.texture_seed)
    y, x = np.mgrid[-_HALF : _HALF : _CANVAS * 1j, -_HALF : _HALF : _CANVAS * 1j]

    def noise(sigma: float) -> np.ndarray:
        # Drawn coarse and enlarged: blurring the full canvas with a wide kernel gives nothing more.
        side = max(4, round(_CANVAS / sigma))
        coarse = rng.standard_normal((side, side)).astype(np.float32)
        return cv2.resize(coarse, (_CANVAS, _CANVAS), interpolation=cv2.INTER_CUBIC)

    def bump(cx: float, cy: float, sx: float, sy: float) -> np.ndarray:
        return np.exp(-(((x - cx) / sx) ** 2) - ((y - cy) / sy) ** 2)

    shade = 1 + 0.025 * noise(40) + 0.015 * noise(6) + 0.015 * noise(1.5)
    direction = np.cos(face.light_angle) * x + np.sin(face.light_angle) * y
    shade += face.light_contrast * direction / 48 - 0.10 * (x / 48) ** 2
    for side in (-1, 1):
        shade -= 0.45 * bump(side * 7, -34, 4.5, 3)  # nostril
        shade -= 0.16 * bump(side * 13.5, -35, 3, 7)  # wing of the nose
        shade -= 0.06 * bump(side * 3.2, -18, 1.6, 7)  # ridge of the philtrum
        fold = side * (15 + 0.75 * (y + 36) - 0.009 * (y + 36) ** 2)
        shade -= face.folds * np.exp(-(((x - fold) / 3.2) ** 2)) / (1 + np.exp((y - 2) / 5))
        shade -= 0.10 * bump(side * (face.half_width + 3), 0, 4, 5)  # corner of the mouth
    shade += 0.06 * bump(0, -18, 2, 7) + 0.08 * bump(0, -42, 9, 10)
    shade -= 0.16 * bump(0, 16, 13, 4)  # below the lower lip
    shade += 0.07 * bump(0, 30, 12, 8)  # chin
    shade -= 0.30 / (1 + np.exp(-(y - 50 + 0.009 * x**2) / 3.5))  # throat
    if face.stubble:
        grain = np.clip(noise(1.2), -1.5, 1.5) * 0.35 + 0.65
        beard = bump(0, -13, 24, 7) + 0.9 / (1 + np.exp(-(y - 12) / 4)) + 0.5 * (np.abs(x) > 38)
        shade *= 1 - 0.22 * face.stubble * cv2.GaussianBlur(np.clip(beard, 0, 1), (0, 0), 6) * grain
    return np.clip(shade[..., None] * np.array(face.skin), 0, 255).astype(np.uint8)


class _Outline(NamedTuple):
    """Lip lines from corner to corner: y in units, float64[T, N], over `x` or, the inner pair, `inner_x`."""

    x: np.ndarray
    inner_x: np.ndarray
    upper_outer: np.ndarray
    upper_inner: np.ndarray
    lower_inner: np.ndarray
    lower_outer: np.ndarray
    gap: np.ndarray  # [T, 1] height of the inner gap at the centre


def _outline(pose: np.ndarray, face: Face) -> _Outline:
    opening, width, _, _, tuck, press = (pose[:, i : i + 1] for i in range(6))
    spread, pursed = np.maximum(width, 0), np.maximum(-width, 0)
    gap = face.opening * np.maximum(opening, 0)
    half = face.half_width * (1 + 0.15 * spread - 0.42 * pursed) * (1 - 0.06 * opening)
    inner_half = half * (0.90 - 0.16 * pursed)
    # The gap is a pointed lens when the lips are spread and a round hole when they are pursed.
    power = 1.0 - 0.5 * pursed
    lens = np.maximum(1 - _CURVE**2, 0) ** power
    droop = 1.2 * _CURVE**2 - 2.2 * spread * _CURVE**2  # corners drop at rest, rise in a smile
    upper_inner = -0.30 * gap * lens + droop
    lower_inner = 0.70 * gap * lens + droop - 1.5 * tuck * lens
    thickness = face.lip_thickness * (1 - 0.35 * press) * (1 + 0.32 * pursed - 0.12 * spread)
    upper_thickness = _UPPER_LIP * thickness * (1 - 0.15 * opening)
    lower_thickness = _LOWER_LIP * thickness * (1 - 0.5 * tuck)
    peaks = 0.10 * np.exp(-(((np.abs(_CURVE) - 0.2) / 0.13) ** 2))
    dip = 0.12 * np.exp(-((_CURVE / 0.1) ** 2))
    bow = (1 - np.abs(_CURVE) ** 1.7) * (1 + peaks - dip)
    belly = 1 - np.abs(_CURVE) ** 2.6
    # Outer lines follow the gap at their own x, so the lips stay closed around it up to the corners.
    outer_lens = np.maximum(1 - _CURVE**2, 0) ** np.minimum(power, 0.8)
    return _Outline(
        x=half * _CURVE,
        inner_x=inner_half * _CURVE,
        upper_outer=-0.30 * gap * outer_lens + droop - upper_thickness * bow,
        upper_inner=upper_inner,
        lower_inner=lower_inner,
        lower_outer=0.70 * gap * outer_lens + droop - 1.5 * tuck * outer_lens + lower_thickness * belly,
        gap=gap,
    )


def _area(x1: np.ndarray, y1: np.ndarray, x2: np.ndarray, y2: np.ndarray) -> np.ndarray:
    """int32[T, 2N, 2], fixed point: the areas between lines (x1, y1) and (x2, y2), float64[T, N] units."""
    corners = np.stack([np.hstack([x1, x2[:, ::-1]]), np.hstack([y1, y2[:, ::-1]])], axis=-1)
    return np.round((corners + _HALF) * (_SUPERSAMPLING << _FIXED_POINT_BITS)).astype(np.int32)


def _layers(pose: np.ndarray, line: _Outline, face: Face) -> list[tuple[np.ndarray, tuple[float, ...]]]:
    """What is painted over the skin, in this order: polygons int32[T, N, 2] with the colour of each."""
    lips = np.array(face.lips, np.float64)
    dim = 0.7 + 0.3 * np.mean(face.skin) / 180
    middle = (line.x + line.inner_x) / 2

    def band(inner: np.ndarray, outer: np.ndarray, begin: float, end: float, ends: int) -> np.ndarray:
        kept = slice(ends, -ends)
        near, far = inner + begin * (outer - inner), inner + end * (outer - inner)
        return _area(middle[:, kept], near[:, kept], middle[:, kept], far[:, kept])

    inside = slice(3, -3)  # teeth and tongue end short of the corners
    x, top, bottom = line.inner_x[:, inside], line.upper_inner[:, inside], line.lower_inner[:, inside]
    teeth, tongue = np.clip(pose[:, 2:3], 0, 1), np.clip(pose[:, 3:4], 0, 1)
    arch = 1 - 0.8 * (_CURVE[inside] / _CURVE[inside][-1]) ** 2
    tongue_top = bottom - (bottom - top) * arch * (0.12 + 0.75 * tongue)
    upper_teeth = top + np.minimum(bottom - top, 5.2 * teeth)
    return [
        (_area(line.x, line.upper_outer, line.inner_x, line.upper_inner), tuple(lips * 0.90)),
        (_area(line.x, line.lower_outer, line.inner_x, line.lower_inner), tuple(lips)),
        (band(line.upper_inner, line.upper_outer, 0, 0.45, 2), tuple(lips * 0.78)),
        (band(line.lower_inner, line.lower_outer, 0.62, 1, 2), tuple(lips * 0.88)),
        (band(line.lower_inner, line.lower_outer, 0.25, 0.5, 6), tuple(lips * 1.15)),
        (_area(line.inner_x, line.upper_inner - 0.4, line.inner_x, line.lower_inner + 0.4), (26, 20, 42)),
        (_area(x, tongue_top, x, bottom), (92 * dim, 86 * dim, 170 * dim)),
        (_area(x, top, x, upper_teeth), (198 * dim, 216 * dim, 226 * dim)),
    ]


def _head_motion(num_frames: int, face: Face, rng: np.random.Generator) -> np.ndarray:
    """Affine maps float64[T, 2, 3] from the canvas to the crop: the head sways, nods and tilts a little."""
    seconds = np.arange(num_frames)[:, None] / FRAME_RATE
    frequencies, phases = rng.uniform(0.2, 0.9, (2, 4)), rng.uniform(0, 2 * np.pi, (2, 4))
    sway = np.sin(2 * np.pi * frequencies[0] * seconds + phases[0])
    sway += 0.5 * np.sin(4 * np.pi * frequencies[1] * seconds + phases[1])
    angle = np.deg2rad(1.3) * sway[:, 0] + np.deg2rad(rng.uniform(-3, 3))
    scale = face.scale * (1 + 0.012 * sway[:, 1]) / _SUPERSAMPLING
    shift = np.array(face.position) + rng.uniform(-1.5, 1.5, 2) + 0.9 * sway[:, 2:]
    linear = scale[:, None, None] * np.array(
        [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    ).transpose(2, 0, 1)
    offset = SIZE / 2 + shift - linear @ np.full(2, _CANVAS / 2)
    return np.concatenate([linear, offset[:, :, None]], axis=2)


def _stretch_rows(drop: np.ndarray) -> np.ndarray:
    """Rows of the skin int64[T, canvas] to show when the lower lip, and the chin, drop by `drop` [T, 1]."""
    y = np.arange(_CANVAS) / _SUPERSAMPLING - _HALF
    ramp = np.clip(y / 16, 0, 1)
    rows = np.round((y - drop * ramp * ramp * (3 - 2 * ramp) + _HALF) * _SUPERSAMPLING)
    return np.clip(rows, 0, _CANVAS - 1).astype(np.int64)


def render(phonemes: tuple[Phoneme, ...], num_frames: int, face: Face, rng: np.random.Generator) -> np.ndarray:
    """The mouth saying `phonemes`, with the head motion, exposure and sensor noise that `rng` draws.

    Returns uint8[T, 96, 96, 3] in BGR, T = num_frames at 25 fps.
    Raises InputError for a phoneme that has no viseme.
    """
    pose = articulate(phonemes, num_frames)
    line = _outline(pose, face)
    layers = _layers(pose, line, face)
    middle = len(_CURVE) // 2
    rows = _stretch_rows(line.lower_outer[:, middle : middle + 1] - _LOWER_LIP * face.lip_thickness)
    motion = _head_motion(num_frames, face, rng)
    skin = _draw_skin(face)

    frames = np.empty((num_frames, SIZE, SIZE, 3), np.uint8)
    reach = 30 * _SUPERSAMPLING
    mouth = slice(_CANVAS // 2 - reach, _CANVAS // 2 + reach)
    for t in range(num_frames):
        canvas = np.take(skin, rows[t], axis=0)
        # The edge of an empty polygon would still be drawn: behind closed lips there is nothing to see.
        for polygons, colour in layers if line.gap[t] > 1 else layers[:_NUM_OUTER_LAYERS]:
            cv2.fillPoly(canvas, [polygons[t]], colour, cv2.LINE_AA, _FIXED_POINT_BITS)
        canvas[mouth, mouth] = cv2.GaussianBlur(canvas[mouth, mouth], (5, 5), 1.1)
        cv2.warpAffine(canvas, motion[t], (SIZE, SIZE), dst=frames[t], flags=cv2.INTER_LINEAR, borderMode=1)

    exposure = rng.uniform(0.9, 1.1)
    grain = rng.normal(0, rng.uniform(1, 3), (SIZE * SIZE * 3 * 4)).astype(np.float32)
    for frame, start in zip(frames, rng.integers(0, 3 * SIZE * SIZE * 3, num_frames), strict=True):
        noise = grain[start : start + frame.size].reshape(frame.shape)
        frame[:] = np.clip(frame * np.float32(exposure) + noise, 0, 255)
    return frames
