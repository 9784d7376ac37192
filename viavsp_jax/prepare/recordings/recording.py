"""Reads any video or audio file: pictures at 25 a second and speech at 16 kHz, both from the same instant on.

FFmpeg does the decoding, see data/containers.py. A damaged or truncated file is used as far as it can be decoded, with
a warning. Letters: H, W height and width of a picture, n audio samples.
"""

import contextlib
import dataclasses
import fractions
import itertools
import logging
import operator
from collections.abc import Iterator, Sequence

import av
import numpy as np
from etils import epath

from viavsp_jax.data import addresses
from viavsp_jax.data.containers import decoded, demuxed, duration, ending, opened, tracks
from viavsp_jax.data.features import FRAME_RATE, SAMPLE_RATE
from viavsp_jax.prepare.recordings import sound
from viavsp_jax.prepare.recordings.timeline import Timeline, find_timeline
from viavsp_jax.prepare.recordings.upright import Orientation, bordered, oblong, orientation, upright
from viavsp_jax.runtime.errors import InputError

# Containers that hold the media themselves and have timestamps. Not those that name other files (hls, concat, dash,
# image2, sdp), and not those that FFmpeg makes of any text (tty).
CONTAINERS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,dts,dv,eac3,flac,flv,gxf,matroska,mov,mp3,mpeg,mpegts,mxf,nut,ogg,rm,tta,"
    "w64,wav,wv"
)
_LONGEST_GAP = 3600  # seconds without a picture; timestamps that leap further are wrong
_LONGEST_HOLD = 1  # seconds that a picture may be held beyond its time and still show what is done
MOST_PIXELS = 8192 * 8192
_THREADS = 2  # they decode faster than faces are found; more only hold more pictures in memory
_HALF = fractions.Fraction(1, 2)

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Track:
    """A track of an open file as it is. Times are seconds since the recording's start; one of the two can be read."""

    stream: av.stream.Stream
    frames: Iterator[tuple[av.VideoFrame | av.AudioFrame, fractions.Fraction, fractions.Fraction]]  # with start and end
    packets: Iterator[tuple[av.Packet, fractions.Fraction | None]]  # with start, if the file says when
    whole: bool  # neither damaged, as far as is known, nor joined of several, whose settings may differ


@dataclasses.dataclass
class Recording:
    """A file with pictures, sound or both. Its first picture and first sample belong to the same instant."""

    path: epath.Path
    samples: np.ndarray | None  # int16[n] at 16 kHz; None without sound that can be heard
    size: tuple[int, int] | None  # width and height of the pictures in square pixels, upright; None without pictures
    seconds: float | None  # how long it is, if the file says so
    max_seconds: float | None = None  # longer ones are refused, whatever the file says
    _start: fractions.Fraction = fractions.Fraction(0)  # of both, in the file's own time
    _oblong: fractions.Fraction = fractions.Fraction(1)  # width of a pixel by its height
    _orientation: Orientation = Orientation()  # how a decoded picture becomes upright
    _video: int = 0  # number of the track that the pictures are from
    _sound: int | None = None  # and of the one that the samples are from, or would be if it was not silent
    _timeline: Timeline = Timeline()
    damage: str = ""  # what could not be decoded first, as far as is known by now

    def frames(self) -> Iterator[np.ndarray]:
        """Pictures uint8[H, W, 3] (BGR, read-only) at 25 a second; each call reads the file anew.

        Each is what a player shows in the middle of its 1/25 s. Before the first decoded picture, that one is given.
        Sound may go on after the last one.

        Raises InputError if the timestamps leap, or there are more than is allowed.
        """
        return (picture for picture, _ in self.shown_frames())

    def shown_frames(self) -> Iterator[tuple[np.ndarray, bool]]:
        """As `frames`, with whether the picture is of that time.

        It is not before the first one, nor where the next one takes more than a second longer to come than it should.
        """
        for count, (picture, shown) in enumerate(self._pictures(), start=1):
            self._check_length(count / FRAME_RATE)
            yield picture, shown

    def _check_length(self, seconds: float) -> None:
        if self.max_seconds is not None and seconds > self.max_seconds:
            raise InputError(
                f"{self.path}: is longer than {self.max_seconds / 60:g} minutes, expected at most so many."
            )

    def _pictures(self) -> Iterator[tuple[np.ndarray, bool]]:
        count, shown, picture, end = 0, None, None, 0
        with self.track("video") as track:
            for frame, time, until in track.frames:
                while (count + _HALF) / FRAME_RATE <= time:
                    picture = self._picture(shown or frame) if picture is None else picture
                    yield picture, shown is not None and (count + _HALF) / FRAME_RATE < end + _LONGEST_HOLD
                    count += 1
                shown, picture, end = frame, None, until
            while shown is not None and (count == 0 or (count + _HALF) / FRAME_RATE < end):
                picture = self._picture(shown) if picture is None else picture
                yield picture, True
                count += 1

    def _picture(self, frame: av.VideoFrame) -> np.ndarray:
        """Upright. Where the file goes on with pictures of another shape, they are fitted in, with black around."""
        (picture,) = self.upright(frame, self.size, format="bgr24")
        picture = bordered(picture, self.size)
        picture.flags.writeable = False  # the same one may be given several times
        return picture

    def upright(self, frame: av.VideoFrame, size: tuple[int, int], **wanted: object) -> list[np.ndarray]:
        """As upright.upright, of a frame of the track of pictures. Raises InputError if it cannot be converted."""
        try:
            return upright(frame, size, self._oblong, self._orientation, **wanted)
        except (av.FFmpegError, ValueError) as error:
            raise InputError(f"{self.path}: has a picture that cannot be converted ({error}).") from error

    @contextlib.contextmanager
    def track(self, kind: str) -> Iterator[Track | None]:
        """The track that the pictures (kind "video") or the samples ("audio") are from; None without one.

        Its frames raise InputError if the timestamps of pictures leap, and if there is more than is allowed.
        """
        number = self._sound if kind == "audio" else self._video if self.size else None
        if number is None:
            yield None
            return
        with _opened(self.path) as container:
            stream = container.streams[number]
            whole = len(self._timeline.shifts) == 1 and not self.damage
            yield Track(stream, self._own_frames(container, stream), self._own_packets(container, stream), whole)

    def _own_packets(
        self, container: av.container.InputContainer, stream: av.stream.Stream
    ) -> Iterator[tuple[av.Packet, fractions.Fraction | None]]:
        for _, packet in self._timeline.placed(demuxed(container, [stream], self._report), stream.index):
            if packet.size:  # the last is empty: it is for decoders
                yield packet, None if packet.pts is None else packet.pts * packet.time_base - self._start

    def _own_frames(
        self, container: av.container.InputContainer, stream: av.stream.Stream
    ) -> Iterator[tuple[av.VideoFrame | av.AudioFrame, fractions.Fraction, fractions.Fraction]]:
        end = fractions.Fraction(0)
        for frame, time, _ in self._timed(container, stream):
            time -= self._start
            if stream.type == "video" and time - max(end, 0) > _LONGEST_GAP:
                raise InputError(f"{self.path}: its pictures leap from {float(end):.0f} s to {float(time):.0f} s.")
            self._check_length(time)
            end = time + duration(frame, stream)
            yield frame, time, end

    def _timed(
        self, container: av.container.InputContainer, stream: av.stream.Stream
    ) -> Iterator[tuple[av.VideoFrame | av.AudioFrame, fractions.Fraction, int]]:
        """Each decoded frame, its time in seconds, and the number of its piece. What is damaged is reported."""
        if stream.type == "video":
            stream.thread_type, stream.codec_context.thread_count = "AUTO", _THREADS
        expected = fractions.Fraction(0)
        placed = self._timeline.placed(demuxed(container, [stream], self._report), stream.index)
        for piece, packets in itertools.groupby(placed, key=operator.itemgetter(0)):
            last = [] if piece == len(self._timeline.shifts) - 1 else [ending(stream)]
            for frame in decoded(itertools.chain((packet for _, packet in packets), last), self._report):
                if frame.is_corrupt:
                    self._report("the decoder made up a part of it")
                time = expected if frame.pts is None else frame.pts * frame.time_base
                expected = time + duration(frame, stream)
                yield frame, time, piece
            if last:
                stream.codec_context.flush_buffers()

    def _report(self, what: str) -> None:
        if not self.damage:
            log.warning("%s: damaged or truncated (%s), what can be decoded is used", self.path, what)
        self.damage = self.damage or what


def read_recording(path: epath.PathLike, max_seconds: float | None = None, audio_track: int | None = None) -> Recording:
    """Reads the sound of a file and the first of its pictures; the others are read when they are asked for.

    Of several tracks, the one is used that a player would, if there is a decoder for it and if it is not silent; or the
    sound track `audio_track`, counted from 1. A file that is longer than `max_seconds` is refused as soon as it is
    known to be: by what it says of itself, else when so much sound or so many pictures have been decoded.

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
        videos, sounds = ([one.index for one in tracks(container, kind)] for kind in ("video", "audio"))
        if audio_track is not None:
            sounds = [_chosen(path, container, audio_track)]
        if not videos and not sounds:
            streams = [*container.streams.video, *container.streams.audio]
            kinds = "pictures and sound of kinds that there is no decoder for"
            what = kinds if streams else "neither pictures nor sound"
            raise InputError(f"{path}: has {what}, expected a video or audio file.")
        for what, of_kind in (("pictures", container.streams.video), ("sound", container.streams.audio)):
            if of_kind and all(stream.codec_context is None for stream in of_kind):
                log.warning("%s: there is no decoder for its %s", path, what)
        used = [container.streams[index] for index in (*videos, *sounds)]
        recording._timeline, seconds = find_timeline(container, demuxed(container, used, recording._report))
        if len(recording._timeline.shifts) > 1:
            recording.seconds = float(seconds)
            recording._check_length(recording.seconds)
    shown = _read_first_picture(recording, videos) if videos else None
    heard = _read_samples(recording, sounds)
    if sounds and recording._sound is None:
        if not videos:
            raise InputError(f"{path}: no sample of its sound could be decoded, expected speech.")
        log.warning("%s: no sample of its sound could be decoded", path)
    recording._start = min(time for time in (shown, heard and heard[0]) if time is not None)
    if heard is not None:
        start, samples = heard
        late = start - recording._start
        if late > sound.LONGEST_GAP:
            raise InputError(f"{path}: its sound begins {float(late):.0f} s after its pictures.")
        ahead = np.zeros(round(late * SAMPLE_RATE), np.int16)
        recording.samples = np.concatenate([ahead, samples]) if ahead.size else samples
    return recording


def _chosen(path: epath.Path, container: av.container.InputContainer, number: int) -> int:
    """The index of a sound track. Raises InputError if there is none of that number, or no decoder for it."""
    found = container.streams.audio
    if not 1 <= number <= len(found):
        raise InputError(f"{path}: has {len(found)} sound tracks, expected one of them as audio_track, not {number}.")
    if found[number - 1].codec_context is None:
        raise InputError(f"{path}: there is no decoder for its sound track {number}, expected another one.")
    return found[number - 1].index


@contextlib.contextmanager
def _opened(path: epath.Path) -> Iterator[av.container.InputContainer]:
    if not addresses.exists(path):
        raise InputError(f"{path}: no such file, expected a video or audio file.")
    with addresses.opened(path) as file:  # not the name, which could be a pattern or in the network
        try:
            container = opened(file, CONTAINERS, MOST_PIXELS)
        except (OSError, av.FFmpegError) as error:  # both: FFmpeg may seek to where no file can be
            reason = error.strerror or error
            raise InputError(
                f"{path}: not a media file that can be read ({reason}), expected a video or audio file, as mp4 or wav."
            ) from error
        with container:
            yield container


def _read_first_picture(recording: Recording, videos: Sequence[int]) -> fractions.Fraction:
    """Chooses the first track with one. Notes its size, upright, and returns when it is shown, in the file's time."""
    for recording._video in videos:
        with _opened(recording.path) as container:
            stream = container.streams[recording._video]
            frame, time, _ = next(recording._timed(container, stream), (None, None, None))
            if frame is None:
                continue
            recording._oblong = oblong(stream)
            width = round(frame.width * recording._oblong)
            if width * frame.height > MOST_PIXELS:
                raise InputError(
                    f"{recording.path}: pictures of {width}x{frame.height}, expected at most 8192x8192 pixels."
                )
            recording._orientation = orientation(frame)
            recording.size = (frame.height, width) if recording._orientation.transposed else (width, frame.height)
            return time
    raise InputError(f"{recording.path}: no picture of its video could be decoded.")


def _read_samples(recording: Recording, sounds: Sequence[int]) -> tuple[fractions.Fraction, np.ndarray] | None:
    """When the sound begins, in the file's own time, and its samples.

    None if nothing can be decoded or, in a file with pictures, if no track can be heard.
    """
    silent = None
    for number, index in enumerate(sounds):
        recording._sound = index
        with _opened(recording.path) as container:
            frames = recording._timed(container, container.streams[index])
            start, samples = sound.read_sound(str(recording.path), frames, recording._check_length)
        if start is None:
            continue
        if not sound.is_silent(samples):
            if number:
                log.warning("%s: sound track %d is used, those before it are silent", recording.path, number + 1)
            return start, samples
        silent = silent or (start, samples)
    recording._sound = sounds[0] if silent else None
    return None if recording.size else silent
