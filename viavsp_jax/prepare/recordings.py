"""Reads any video or audio file: pictures at 25 a second and speech at 16 kHz, both from the same instant on.

FFmpeg (PyAV) does the decoding. It gets the open file and nothing else: playlists and lists of files, by which a file
from a stranger could make it read other files or addresses, are refused.

A damaged or truncated file is used as far as it can be decoded, with a warning. Letters: H, W height and width of a
picture, n audio samples.
"""

import contextlib
import dataclasses
import fractions
import logging
from collections.abc import Iterator

import av
import numpy as np
from av.stream import Disposition
from etils import epath

from viavsp_jax.data.media import FRAME_RATE, SAMPLE_RATE
from viavsp_jax.errors import InputError

# Containers that hold the media themselves and have timestamps. Not those that name other files (hls, concat, dash,
# image2, sdp), and not those that FFmpeg makes of any text (tty).
_CONTAINERS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,dts,dv,eac3,flac,flv,gxf,matroska,mov,mp3,mpeg,mpegts,mxf,nut,ogg,rm,tta,"
    "w64,wav,wv"
)
# A track whose timestamps differ by less from the sum of its samples goes on without a break; containers round them.
_TOLERANCE = fractions.Fraction(1, 10)
_LONGEST_GAP = 3600  # seconds without a picture or, all in all, a sound; timestamps that leap further are wrong
_MOST_OBLONG = 4  # width of a pixel by its height, or the other way round; more than that is a mistake
_MOST_PIXELS = 8192 * 8192
# Of decoders. A picture of one colour is a thousand times smaller as a file than in memory.
_LIMITS = {"max_pixels": str(_MOST_PIXELS)}
_OPTIONS = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "none", **_LIMITS}
_THREADS = 2  # they decode faster than faces are found; more only hold more pictures in memory
_HALF = fractions.Fraction(1, 2)

log = logging.getLogger(__name__)


@dataclasses.dataclass
class Recording:
    """A file with pictures, sound or both. Its first picture and first sample belong to the same instant."""

    path: epath.Path
    samples: np.ndarray | None  # int16[n] at 16 kHz; None without sound
    size: tuple[int, int] | None  # width and height of the pictures in square pixels, upright; None without pictures
    seconds: float | None  # how long it is, if the file says so
    max_seconds: float | None = None  # longer ones are refused, whatever the file says
    _start: fractions.Fraction = fractions.Fraction(0)  # of both, in the file's own time
    _rotation: int = 0  # quarter turns to the left that make a decoded picture upright
    _reported: bool = False

    def frames(self) -> Iterator[np.ndarray]:
        """Pictures uint8[H, W, 3] (BGR, read-only) at 25 a second; each call reads the file anew.

        Each is what a player shows in the middle of its 1/25 s. Before the first decoded picture, that one is given.

        Raises InputError if the timestamps leap, or there are more than is allowed.
        """
        for count, picture in enumerate(self._pictures(), start=1):
            self._check_length(count / FRAME_RATE)
            yield picture

    def _check_length(self, seconds: float) -> None:
        if self.max_seconds is not None and seconds > self.max_seconds:
            raise InputError(
                f"{self.path}: is longer than {self.max_seconds / 60:g} minutes, expected at most so many."
            )

    def _pictures(self) -> Iterator[np.ndarray]:
        count, shown, picture, end = 0, None, None, 0
        with _opened(self.path) as container:
            stream = container.streams.best("video")
            for frame, time in _timed(container, stream, self._report):
                time -= self._start
                if time - max(end, 0) > _LONGEST_GAP:
                    raise InputError(f"{self.path}: its pictures leap from {float(end):.0f} s to {float(time):.0f} s.")
                while (count + _HALF) / FRAME_RATE <= time:
                    picture = self._picture(shown or frame) if picture is None else picture
                    yield picture
                    count += 1
                shown, picture, end = frame, None, time + _duration(frame, stream)
            while shown is not None and (count == 0 or (count + _HALF) / FRAME_RATE < end):
                picture = self._picture(shown) if picture is None else picture
                yield picture
                count += 1

    def _picture(self, frame: av.VideoFrame) -> np.ndarray:
        width, height = self.size if self._rotation % 2 == 0 else self.size[::-1]
        try:
            picture = np.rot90(frame.reformat(width, height, "bgr24").to_ndarray(), self._rotation)
        except (av.FFmpegError, ValueError) as error:
            raise InputError(f"{self.path}: has a picture that cannot be converted ({error}).") from error
        picture.flags.writeable = False  # the same one may be given several times
        return picture

    def _report(self, what: object) -> None:
        if not self._reported:
            log.warning("%s: damaged or truncated (%s), what can be decoded is used", self.path, what)
        self._reported = True


def read_recording(path: epath.PathLike, max_seconds: float | None = None) -> Recording:
    """Reads the sound of a file and the first of its pictures; the others are read when they are asked for.

    A file that is longer than `max_seconds` is refused as soon as it is known to be: by what it says of itself, else
    when so much sound or so many pictures have been decoded.

    A 16 kHz mono 16-bit PCM track comes out bit for bit. Other sound is resampled and mixed to mono; gaps become
    silence.

    Raises InputError if the file is missing, is no media file or none of a kind that is read, if nothing in it can be
    decoded, or if it is too long.
    """
    try:
        path = epath.Path(path)
    except KeyError as error:
        raise InputError(f"{path}: no such file, expected a path, not an address.") from error
    recording = Recording(path, None, None, None, max_seconds)
    with _opened(path) as container:
        if container.duration is not None:
            recording.seconds = container.duration / av.time_base
            recording._check_length(recording.seconds)
        has_audio, has_video = _stream(container, "audio") is not None, _stream(container, "video") is not None
    if not has_audio and not has_video:
        raise InputError(f"{path}: has neither pictures nor sound, expected a video or audio file.")
    starts = []
    if has_video:
        starts.append(_read_first_picture(recording))
    if has_audio:
        audio_start, samples = _read_samples(recording)
        if not samples and not has_video:
            raise InputError(f"{path}: no sample of its sound could be decoded, the file is damaged or empty.")
        if samples:
            starts.append(audio_start)
    recording._start = min(starts)
    if has_audio and samples:
        late = audio_start - recording._start
        if late > _LONGEST_GAP:
            raise InputError(f"{path}: its sound begins {float(late):.0f} s after its pictures.")
        ahead = np.zeros(round(late * SAMPLE_RATE), np.int16)
        samples = np.frombuffer(samples, "<i2").astype(np.int16, copy=False)
        recording.samples = np.concatenate([ahead, samples]) if ahead.size else samples
    return recording


@contextlib.contextmanager
def _opened(path: epath.Path) -> Iterator[av.container.InputContainer]:
    if not path.is_file():
        raise InputError(f"{path}: no such file, expected a video or audio file.")
    with path.open("rb") as file:  # not the name, which could be an address or a pattern
        try:
            container = av.open(file, options=_OPTIONS, metadata_errors="replace")
        except (OSError, av.FFmpegError) as error:  # both: FFmpeg may seek to where no file can be
            reason = error.strerror or error
            raise InputError(
                f"{path}: not a media file that can be read ({reason}), expected a video or audio file, as mp4 or wav."
            ) from error
        with container:
            yield container


def _stream(container: av.container.InputContainer, kind: str) -> av.stream.Stream | None:
    """The main stream of a kind that can be decoded; the cover of an audio file is not a video."""
    stream = container.streams.best(kind)
    if stream is None or stream.codec_context is None or stream.disposition & Disposition.attached_pic:
        return None
    return stream


def _read_first_picture(recording: Recording) -> fractions.Fraction:
    """When it is shown, in the file's own time; notes its size, upright."""
    with _opened(recording.path) as container:
        stream = container.streams.best("video")
        frame, time = next(_timed(container, stream, recording._report), (None, None))
        if frame is None:
            raise InputError(f"{recording.path}: no picture of its video could be decoded.")
        oblong = stream.sample_aspect_ratio or 1
        width = round(frame.width * (oblong if 1 / _MOST_OBLONG <= oblong <= _MOST_OBLONG else 1))
        if width * frame.height > _MOST_PIXELS:
            raise InputError(
                f"{recording.path}: pictures of {width}x{frame.height}, expected at most 8192x8192 pixels."
            )
        recording._rotation = round(frame.rotation / 90) % 4
        recording.size = (width, frame.height) if recording._rotation % 2 == 0 else (frame.height, width)
    return time


def _read_samples(recording: Recording) -> tuple[fractions.Fraction | None, bytearray]:
    """When the sound begins, in the file's own time, and its samples as bytes, gaps filled with silence."""
    start, samples = None, bytearray()
    resampler, setup, run_start, run_length, silence = None, None, None, 0, 0
    with _opened(recording.path) as container:
        stream = container.streams.best("audio")
        for frame, time in _timed(container, stream, recording._report):
            start = time if start is None else start
            before, setup = setup, (frame.format.name, frame.layout.name, frame.sample_rate)
            if setup != before or abs(time - run_start - run_length) > _TOLERANCE:
                samples += _resampled(recording.path, resampler, None)
                gap = round((time - start) * SAMPLE_RATE) - len(samples) // 2
                silence += max(0, gap)
                if silence > _LONGEST_GAP * SAMPLE_RATE:
                    raise InputError(f"{recording.path}: its sound leaps by {silence / SAMPLE_RATE:.0f} s.")
                recording._check_length(len(samples) / 2 / SAMPLE_RATE + gap / SAMPLE_RATE)
                samples += bytes(2 * max(0, gap))
                resampler = av.AudioResampler("s16", "mono", SAMPLE_RATE)
                run_start, run_length = time, fractions.Fraction(0)
            run_length += _duration(frame, stream)
            samples += _resampled(recording.path, resampler, frame)
            recording._check_length(len(samples) / 2 / SAMPLE_RATE)
        samples += _resampled(recording.path, resampler, None)
    return start, samples


def _resampled(path: epath.Path, resampler: av.AudioResampler | None, frame: av.AudioFrame | None) -> bytes:
    """What comes out of the resampler, as bytes; without a frame, what is still in it."""
    try:
        frames = resampler.resample(frame) if resampler else []
    except (av.FFmpegError, ValueError) as error:
        raise InputError(f"{path}: its sound cannot be resampled ({error}).") from error
    return b"".join(one.to_ndarray().astype("<i2", copy=False).tobytes() for one in frames if one is not None)


def _timed(container, stream, report) -> Iterator[tuple[av.VideoFrame | av.AudioFrame, fractions.Fraction]]:
    """Each decoded frame and its time in seconds. What cannot be decoded is reported and left out."""
    if stream.type == "video":
        stream.thread_type, stream.codec_context.thread_count = "AUTO", _THREADS
        stream.codec_context.options = _LIMITS
    packets, expected = container.demux(stream), fractions.Fraction(0)
    while True:
        try:
            packet = next(packets, None)
        except (OSError, av.FFmpegError, IndexError) as error:  # the last: a stream that was not there at the start
            report(getattr(error, "strerror", None) or error)
            return
        if packet is None:
            return
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            report(error.strerror)
            continue
        for frame in frames:
            time = expected if frame.pts is None else frame.pts * frame.time_base
            expected = time + _duration(frame, stream)
            yield frame, time


def _duration(frame: av.VideoFrame | av.AudioFrame, stream: av.stream.Stream) -> fractions.Fraction:
    """Seconds for which a frame lasts."""
    if isinstance(frame, av.AudioFrame):
        return fractions.Fraction(frame.samples, frame.sample_rate)
    if frame.duration:
        return frame.duration * frame.time_base
    return 1 / fractions.Fraction(stream.average_rate or FRAME_RATE)
