"""What a media file says of itself and what its packets tell, without decoding any of them."""

import dataclasses
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np

from viavsp_jax.data import addresses
from viavsp_jax.data.containers import demuxed, opened, tracks
from viavsp_jax.data.features import FRAME_RATE
from viavsp_jax.prepare.recordings.recording import CONTAINERS, MOST_PIXELS
from viavsp_jax.runtime.errors import InputError

_SAME_RATE = Fraction(1, 20)  # frames a second by which a rate may differ from another, since containers round times


@dataclasses.dataclass(frozen=True)
class Pictures:
    """The track of pictures that a player would choose."""

    width: int  # as they are stored
    height: int
    rate: Fraction  # of frames, a second
    count: int  # of frames
    start: Fraction  # in seconds, of the file's own time
    seconds: float
    steady: bool  # whether frames come one after the other at 25 a second, without gaps

    @property
    def at_25(self) -> bool:
        """Whether each frame can be taken as it is."""
        return self.steady and abs(self.rate - FRAME_RATE) < _SAME_RATE


@dataclasses.dataclass(frozen=True)
class Sound:
    """The track of sound that a player would choose."""

    rate: int  # of samples, a second
    channels: int
    start: Fraction  # in seconds, of the file's own time
    seconds: float


@dataclasses.dataclass(frozen=True)
class Probe:
    """The tracks of a file; None where there is none that there is a decoder for."""

    pictures: Pictures | None
    sound: Sound | None


def probe(address: str) -> Probe:
    """Looks at a file, or at what is inside of another (see data/addresses.py).

    Raises InputError if there is none, it is no media file, or it is cut off.
    """
    with addresses.opened(address) as file:
        try:
            container = opened(file, CONTAINERS, MOST_PIXELS)
        except (OSError, av.FFmpegError) as error:
            reason = error.strerror or error
            raise InputError(
                f"{address}: not a media file that can be read ({reason}), expected mp4, wav, …"
            ) from error
        with container:
            chosen = [next(iter(tracks(container, kind)), None) for kind in ("video", "audio")]
            packets: dict[int, list[av.Packet]] = {stream.index: [] for stream in chosen if stream}
            troubles: list[str] = []
            for packet in demuxed(container, list(filter(None, chosen)), troubles.append) if packets else ():
                if packet.size:
                    packets[packet.stream_index].append(packet)
            if troubles:
                raise InputError(f"{address}: damaged ({troubles[0]}), expected a whole file.")
            video, audio = chosen
            return Probe(
                _pictures(address, video, packets[video.index]) if video else None,
                _sound(audio, packets[audio.index]) if audio else None,
            )


def _pictures(address: str, stream: av.VideoStream, packets: Sequence[av.Packet]) -> Pictures:
    start, seconds = _span(packets)
    rate = stream.average_rate or (Fraction(len(packets) / seconds) if seconds else Fraction(0))
    # AVI has no packets for the frames in which a picture is held.
    held = stream.container.format.name == "avi"
    there = round(float((start + Fraction(seconds)) * rate)) if held else len(packets)
    if there < stream.frames:
        raise InputError(f"{address}: cut off after {there} of {stream.frames} frames, expected a whole video.")
    times = sorted(packet.pts for packet in packets if packet.pts is not None)
    expected = times[0] + np.arange(len(times)) / (FRAME_RATE * float(packets[0].time_base)) if times else []
    late = np.abs(np.subtract(times, expected)) * float(packets[0].time_base) if times else np.zeros(0)
    steady = bool(late.max(initial=0) < 1 / (2 * FRAME_RATE))
    return Pictures(stream.width, stream.height, Fraction(rate), len(packets), start, seconds, steady)


def _sound(stream: av.AudioStream, packets: Sequence[av.Packet]) -> Sound:
    start, seconds = _span(packets)
    if stream.duration:  # what an encoder needed ahead of the first sample is a packet, but not in it
        start, seconds = (stream.start_time or 0) * stream.time_base, float(stream.duration * stream.time_base)
    return Sound(stream.rate, stream.channels, Fraction(start), seconds)


def _span(packets: Sequence[av.Packet]) -> tuple[Fraction, float]:
    """When the first begins, and seconds up to the end of the last."""
    times = [(packet.pts, packet.duration or 0) for packet in packets if packet.pts is not None]
    if not times:
        return Fraction(0), 0.0
    unit, starts, durations = packets[0].time_base, *np.array(times, np.int64).T
    return int(starts.min()) * unit, float((int((starts + durations).max()) - int(starts.min())) * unit)
