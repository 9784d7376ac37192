"""What the model saw, for people: the video with subtitles and the mouth's box, the mouth alone, a sheet of mouths.

Letters: H, W height and width of a picture, T video frames (25 a second).
"""

import fractions
import itertools
import os
from collections.abc import Iterable, Iterator

import av
import cv2
import numpy as np

from viavsp_jax.app.transcriber import Transcript
from viavsp_jax.data.features import FRAME_RATE, SAMPLE_RATE
from viavsp_jax.runtime.atomic import atomic_write, write_bytes
from viavsp_jax.runtime.errors import InputError

_GREEN, _ORANGE, _WHITE, _BLACK = (120, 220, 60), (40, 140, 240), (255, 255, 255), (0, 0, 0)
_SHEET = (8, 3)  # columns and rows


def write_video(transcript: Transcript, path: os.PathLike) -> None:
    """Writes a copy of the recording as mp4, with the text of each segment and a box around the mouth.

    The box is orange where the face was not seen and its place was guessed. Raises InputError without pictures.
    """
    recording = transcript.recording
    if recording is None or recording.size is None:
        raise InputError(f"{recording.path if recording else 'the arrays'}: has no pictures to write subtitles on")
    _write_mp4(path, _subtitled(transcript), "bgr24", recording.samples)


def write_mouth(transcript: Transcript, path: os.PathLike) -> None:
    """Writes the crops and the sound as the model got them as mp4. Raises InputError if no video was used."""
    if transcript.mouth is None:
        raise InputError("no video was used, so there is no mouth to show")
    _write_mp4(path, transcript.mouth.crops, "gray", transcript.samples)


def _write_mp4(path: os.PathLike, pictures: Iterable[np.ndarray], form: str, samples: np.ndarray | None) -> None:
    """Writes pictures of a PyAV pixel format, of even sides and 25 a second, and int16[n]: H.264 and AAC."""
    pictures = iter(pictures)
    first = next(pictures)
    # An open file, because FFmpeg takes names with a colon for addresses.
    with atomic_write(path) as temporary, open(temporary, "wb") as file, av.open(file, "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=FRAME_RATE, options={"crf": "20", "preset": "veryfast"})
        video.height, video.width, video.pix_fmt = *first.shape[:2], "yuv420p"
        audio = None if samples is None else container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        for number, picture in enumerate(itertools.chain([first], pictures)):
            frame = av.VideoFrame.from_ndarray(picture, format=form)
            frame.pts, frame.time_base = number, fractions.Fraction(1, FRAME_RATE)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if audio is not None:
            frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
            frame.sample_rate, frame.pts = SAMPLE_RATE, 0
            container.mux(audio.encode(frame))
            container.mux(audio.encode(None))


def _subtitled(transcript: Transcript) -> Iterator[np.ndarray]:
    """The pictures with text and box: uint8[H, W, 3], their sides made even, as H.264 wants them."""
    font, mouth = cv2.FontFace("sans"), transcript.mouth
    texts = {frame: segment.text for segment in transcript.segments for frame in range(segment.first, segment.end)}
    for number, picture in enumerate(_held(transcript.recording.frames(), transcript.num_frames)):
        height, width = picture.shape[:2]
        picture = cv2.copyMakeBorder(picture, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        if mouth is not None and number < len(mouth.boxes):
            _draw_box(picture, mouth.boxes[number], bool(mouth.found[number]))
        if texts.get(number):
            _draw_text(picture, texts[number], font)
        yield picture


def _held(pictures: Iterable[np.ndarray], count: int) -> Iterator[np.ndarray]:
    """At least `count` pictures: where sound goes on, the last one stays."""
    shown, picture = 0, None
    for picture in pictures:
        yield picture
        shown += 1
    if picture is not None:
        yield from itertools.repeat(picture, max(0, count - shown))


def sheet(crops: np.ndarray) -> np.ndarray:
    """24 mouth crops, evenly over the recording: uint8[T, 96, 96] → uint8[H, W]."""
    columns, rows = _SHEET
    chosen = crops[np.linspace(0, len(crops) - 1, columns * rows).round().astype(int)]
    framed = np.pad(chosen, [(0, 0), (1, 1), (1, 1)], constant_values=255)
    side = framed.shape[1]
    return framed.reshape(rows, columns, side, side).transpose(0, 2, 1, 3).reshape(rows * side, columns * side)


def write_sheet(transcript: Transcript, path: os.PathLike) -> None:
    """Writes `sheet` of the mouth as PNG. Raises InputError if no video was used."""
    if transcript.mouth is None:
        name = transcript.recording.path if transcript.recording else "the arrays"
        raise InputError(f"{name}: no mouth was looked for, so there is no picture of it (--mouths)")
    write_bytes(path, cv2.imencode(".png", sheet(transcript.mouth.crops))[1].tobytes())


def _draw_box(picture: np.ndarray, box: np.ndarray, seen: bool) -> None:
    """`box` as in MouthTrack."""
    x, y, side, angle = map(float, box)
    corners = cv2.boxPoints(((x, y), (side, side), angle)).round().astype(np.int32)
    cv2.polylines(picture, [corners], True, _GREEN if seen else _ORANGE, max(1, picture.shape[0] // 240), cv2.LINE_AA)


def _draw_text(picture: np.ndarray, text: str, font: cv2.FontFace) -> None:
    """Lines at the bottom, white with a dark edge."""
    height, width = picture.shape[:2]
    size, margin = max(11, height // 18), width // 20
    for number, line in enumerate(reversed(_lines(text, font, size, width - 2 * margin, (width, height)))):
        left, _, length, _ = cv2.getTextSize((width, height), line, (0, 0), font, size, 600)
        at = ((width - length) // 2 - left, height - margin // 2 - round(1.35 * size * number) - size // 4)
        for dx, dy in ((-1, 0), (1, 0), (0, -1), (0, 1), (1, 1), (-1, -1)):
            cv2.putText(picture, line, (at[0] + dx, at[1] + dy), _BLACK, font, size, 600)
        cv2.putText(picture, line, at, _WHITE, font, size, 600)


def _lines(text: str, font: cv2.FontFace, size: int, width: int, picture: tuple[int, int]) -> list[str]:
    """The text in lines that are no wider than asked, but for single words."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and cv2.getTextSize(picture, longer, (0, 0), font, size, 600)[2] <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
