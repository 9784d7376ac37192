"""Pictures of a copy with subtitles: text and the mouth's box are drawn on them, all else is only fitted in.

They are drawn on as video holds them: a plane of brightness and two of colour for squares of four pixels (yuv420p).

Letters: H, W height and width of a picture, both even.
"""

import fractions
import math
from collections.abc import Sequence

import av
import cv2
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation

from viavsp_jax.app.cues import Cue, Style
from viavsp_jax.app.lettering import Run, lettering, planes_of
from viavsp_jax.app.transcriber import Transcript
from viavsp_jax.data.features import FRAME_RATE
from viavsp_jax.prepare.recordings.upright import pixels

_GREEN, _ORANGE = (60, 220, 120), (240, 140, 40)
_LONGEST_SIDE, _MOST_PIXELS = 16_384, 139_264 * 256  # that H.264 takes
_SCALING = Interpolation.BICUBIC | Interpolation.ACCURATE_RND
_SHIFT = 4  # bits of a coordinate behind its point


class Painter:
    """Draws on the pictures of one recording."""

    def __init__(self, transcript: Transcript, subtitles: Sequence[Cue], style: Style, first: av.VideoFrame):
        """Args:
        subtitles, style: what is written, and which of its words are doubtful.
        first: picture of the recording; the copy has its colours' range and meaning.
        """
        self._transcript = transcript
        self._texts = {}  # of each of 25 frames a second
        for cue in subtitles:
            numbers = range(*(round(time * FRAME_RATE) for time in (cue.start, cue.end)))
            lines = (
                tuple(Run(word.text, word is cue.spoken, style.doubts(word)) for word in line) for line in cue.lines
            )
            self._texts |= dict.fromkeys(numbers, tuple(lines))
        width, height = transcript.recording.size
        self._scale = min(1.0, _LONGEST_SIDE / max(width, height), math.sqrt(_MOST_PIXELS / (width * height)))
        if self._scale < 1:
            width, height = (max(1, int(side * self._scale)) for side in (width, height))
        self._inner = width, height
        self.width, self.height = width + width % 2, height + height % 2  # even, as H.264 wants them
        # Colours of computers (RGB) become those of HD video; what has a range of its own keeps it.
        self._full = not first.format.is_rgb and (
            first.color_range == ColorRange.JPEG or first.format.name.startswith("yuvj")
        )
        self._wanted: dict[str, object] = {"format": "yuv420p", "interpolation": _SCALING}
        if self._full:
            self._wanted |= {"src_color_range": ColorRange.JPEG, "dst_color_range": ColorRange.JPEG}
        if first.format.is_rgb:
            self._wanted |= {"dst_colorspace": Colorspace.ITU709, "dst_color_range": ColorRange.MPEG}

    def tag(self, encoder: av.video.codeccontext.VideoCodecContext, first: av.VideoFrame) -> None:
        """Tells an encoder how large the pictures are and what the numbers of their colours mean."""
        encoder.width, encoder.height, encoder.pix_fmt = self.width, self.height, "yuv420p"
        encoder.color_range = ColorRange.JPEG if self._full else ColorRange.MPEG
        encoder.colorspace = Colorspace.ITU709 if first.format.is_rgb else first.colorspace
        encoder.color_primaries, encoder.color_trc = first.color_primaries, first.color_trc

    def painted(self, frame: av.VideoFrame, start: fractions.Fraction, end: fractions.Fraction) -> av.VideoFrame:
        """A picture of the recording for the copy: a new one, yuv420p.

        Args:
          start, end: seconds between which it is shown.

        Raises InputError if it cannot be converted.
        """
        picture = av.VideoFrame(self.width, self.height, "yuv420p")
        planes = [pixels(plane) for plane in picture.planes]
        self._fill(planes, self._transcript.recording.upright(frame, self._inner, **self._wanted))
        # The number, of 25 a second, of the picture that the model saw in the middle of this one, or near its start.
        moment = start + min(end - start, fractions.Fraction(1, FRAME_RATE)) / 2
        number = max(0, round(moment * FRAME_RATE - fractions.Fraction(1, 2)))
        mouth = self._transcript.mouth
        if mouth is not None and len(mouth.boxes):
            last = min(number, len(mouth.boxes) - 1)
            self._draw_box(planes, mouth.boxes[last], bool(mouth.found[last]))
        text = lettering(self._texts.get(number, ()), self.width, self.height, self._full)
        if text is not None:
            text.lay_on(planes)
        return picture

    def _fill(self, planes: Sequence[np.ndarray], parts: Sequence[np.ndarray]) -> None:
        """Copies one picture's planes into those of another, with black around; an odd side gets its edge twice."""
        for number, (plane, part) in enumerate(zip(planes, parts, strict=True)):
            step = 1 if number else 2  # in the first plane, each number of the others is of two by two
            top, left = ((whole - own) // 2 // step * step for whole, own in zip(plane.shape, part.shape, strict=True))
            if plane.shape[0] - part.shape[0] > 1 or plane.shape[1] - part.shape[1] > 1:
                plane[:] = planes_of((0, 0, 0), self._full)[number]
            height, width = part.shape
            plane[top : top + height, left : left + width] = part
            if number == 0 and height % 2:
                plane[top + height, left : left + width] = part[-1]
            if number == 0 and width % 2:
                plane[top : top + height + height % 2, left + width] = plane[
                    top : top + height + height % 2, left + width - 1
                ]

    def _draw_box(self, planes: Sequence[np.ndarray], box: np.ndarray, seen: bool) -> None:
        """`box` as in MouthTrack."""
        x, y, side, angle = map(float, box)
        corners = cv2.boxPoints(((x, y), (side, side), angle)) * self._scale
        thickness = max(1, round(min(self.width, self.height) / 240))
        colour = _GREEN if seen else _ORANGE
        for number, (plane, value) in enumerate(zip(planes, planes_of(colour, self._full), strict=True)):
            # The centre of a square of four pixels lies half a pixel behind that of its first.
            points = corners if number == 0 else (corners - 0.5) / 2
            points = np.rint(points * 2**_SHIFT).astype(np.int32)
            wide = thickness if number == 0 else -(-thickness // 2)
            cv2.polylines(plane, [points], True, value, wide, cv2.LINE_AA, _SHIFT)
