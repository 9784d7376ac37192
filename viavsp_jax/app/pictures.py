"""What the model saw, for people: the video with subtitles and the mouth's box, the mouth alone, a sheet of mouths.

Letters: H, W height and width of a picture, T video frames (25 a second).
"""

import heapq
import itertools
import math
import operator
import os
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction

import av
import cv2
import numpy as np
from av.codec.context import Flags

from viavsp_jax.app.cues import PLAIN, Style, cues
from viavsp_jax.app.own_sound import add_sound
from viavsp_jax.app.painter import Painter
from viavsp_jax.app.transcriber import Transcript
from viavsp_jax.data.features import FRAME_RATE, SAMPLE_RATE
from viavsp_jax.prepare.recordings.recording import Recording, Track
from viavsp_jax.runtime.atomic import atomic_write, write_bytes
from viavsp_jax.runtime.errors import InputError

_SHEET = (8, 3)  # columns and rows
# Nobody sees a difference. Pictures lie in the order they are shown (bf), so that the last one is known to be the last.
_COPY = {"crf": "18", "preset": "veryfast", "bf": "0"}
_FRAME = Fraction(1, FRAME_RATE)  # seconds
_LOOSE_END = Fraction(1, 5)  # seconds by which sound may be longer, as most is by a bit, and nothing is held
_LONG = Fraction(1, 2)  # seconds: a picture that stays longer is shown again where the text changes


def write_video(
    transcript: Transcript,
    path: os.PathLike,
    progress: Callable[[float], None] = lambda share: None,
    style: Style = PLAIN,
) -> None:
    """Writes a copy of the recording as mp4, with its subtitles and a box around the mouth.

    Letters are white; of a word that `style` highlights yellow, and of one that it doubts light blue.

    The pictures are the file's own, each at its own time, upright and with square pixels; larger ones than H.264 has
    are made smaller. Where sound goes on, the last one stays. The sound is the file's own, too.

    The box is orange where the face was not seen and its place was guessed. `progress` is given the share that is done.
    Raises InputError without pictures, or if `style` needs words or their confidence, and the transcript has none.
    """
    recording = transcript.recording
    if recording is None or recording.size is None:
        raise InputError(f"{recording.path if recording else 'the arrays'}: has no pictures to write subtitles on")
    subtitles = cues(transcript, style)
    # An open file, because FFmpeg takes names with a colon for addresses.
    with (
        recording.track("video") as track,
        atomic_write(path) as temporary,
        open(temporary, "wb") as file,
        av.open(file, "w", format="mp4") as container,
    ):
        unit = _unit(track.stream.time_base)
        changes = [_in_units(Fraction(time), unit) for cue in subtitles for time in (cue.start, cue.end)]
        pictures = _shown(recording, track, unit, changes)
        first = next(pictures, None)
        if first is None:
            raise InputError(f"{recording.path}: no picture of its video could be decoded.")
        painter = Painter(transcript, subtitles, style, first[0])
        video = container.add_stream("libx264", rate=track.stream.average_rate or FRAME_RATE, options=_COPY)
        video.codec_context.time_base = unit
        video.codec_context.flags |= Flags.frame_duration
        painter.tag(video.codec_context, first[0])
        packets = _encoded(itertools.chain([first], pictures), painter, video)
        done, seconds = 0, max(transcript.num_frames, 1) / FRAME_RATE
        for time, packet in heapq.merge(packets, add_sound(container, recording), key=operator.itemgetter(0)):
            container.mux(packet)
            if (percent := min(100, int(100 * time / seconds))) > done:
                done = percent
                progress(done / 100)


def _encoded(
    pictures: Iterator[tuple[av.VideoFrame, Fraction, Fraction]], painter: Painter, video: av.video.stream.VideoStream
) -> Iterator[tuple[Fraction, av.Packet]]:
    """The packets to write and when they are due."""
    unit = video.codec_context.time_base
    for frame, start, end in pictures:
        picture = painter.painted(frame, start, end)
        picture.pts, picture.duration, picture.time_base = int(start / unit), int((end - start) / unit), unit
        yield from ((packet.dts * packet.time_base, packet) for packet in video.encode(picture))
    yield from ((packet.dts * packet.time_base, packet) for packet in video.encode(None))


def _unit(own: Fraction) -> Fraction:
    """Seconds in which the copy counts: those of the file or a part of them, as text may change between pictures."""
    return max(own / math.ceil(own * 1000), Fraction(1, 1_000_000))


def _in_units(seconds: Fraction, unit: Fraction) -> Fraction:
    return round(seconds / unit) * unit


def _shown(
    recording: Recording, track: Track, unit: Fraction, changes: Sequence[Fraction]
) -> Iterator[tuple[av.VideoFrame, Fraction, Fraction]]:
    """The pictures, and from when to when they are shown: seconds in whole units, without gaps.

    `changes` are when the text does.
    """
    before, start, end, count = None, None, None, 0
    for frame, time, until in track.frames:
        time = _in_units(time, unit)
        if before is None and time > _LONG:  # sound is far ahead
            before, start = frame, Fraction(0)
        if before is not None:
            if time <= start:  # damaged: it comes too late to be shown
                continue
            yield from _held(before, start, time, changes)
        before, start, end = frame, time, max(time + unit, _in_units(until, unit))
        count += 1
    if before is None:
        return
    samples = recording.samples
    heard = 0 if samples is None else _in_units(Fraction(len(samples), SAMPLE_RATE), unit)
    length = end - start
    more = 0 if heard - end <= _LOOSE_END else (heard - end) // length
    if more <= count:  # at its rate: a steady one stays steady
        yield from ((before, start + index * length, start + (index + 1) * length) for index in range(1 + more))
    else:  # once more at the end, for players that do not know how long a picture stays
        yield from _held(before, start, heard, [*changes, heard - length])


def _held(
    frame: av.VideoFrame, start: Fraction, end: Fraction, changes: Sequence[Fraction]
) -> Iterator[tuple[av.VideoFrame, Fraction, Fraction]]:
    again = {time for time in changes if start < time < end} if end - start > _LONG else ()
    for one, following in itertools.pairwise([start, *sorted(again), end]):
        yield frame, one, following


def write_mouth(transcript: Transcript, path: os.PathLike) -> None:
    """Writes the crops and the sound as the model got them as mp4. Raises InputError if no video was used."""
    if transcript.mouth is None:
        raise InputError("no video was used, so there is no mouth to show")
    samples, crops = transcript.samples, transcript.mouth.crops
    with atomic_write(path) as temporary, open(temporary, "wb") as file, av.open(file, "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=FRAME_RATE, options={"crf": "20", "preset": "veryfast"})
        video.height, video.width, video.pix_fmt = *crops.shape[1:], "yuv420p"
        audio = None if samples is None else container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        for number, crop in enumerate(crops):
            frame = av.VideoFrame.from_ndarray(crop, format="gray")
            frame.pts, frame.time_base = number, _FRAME
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if audio is not None:
            frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
            frame.sample_rate, frame.pts = SAMPLE_RATE, 0
            container.mux(audio.encode(frame))
            container.mux(audio.encode(None))


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
