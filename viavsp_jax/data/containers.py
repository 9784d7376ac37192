"""Opens media files of strangers with FFmpeg (PyAV) and decodes their tracks.

FFmpeg gets the open file and nothing else: playlists and lists of files, by which a file could make it read other files
or addresses, are refused, as only formats that hold the media themselves are let in.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from typing import BinaryIO

import av
from av.stream import Disposition

from viavsp_jax.data.features import FRAME_RATE


def opened(file: BinaryIO, formats: str, max_pixels: int) -> av.container.InputContainer:
    """A file as a container of one of FFmpeg's `formats` (their names with commas), which is a context.

    Larger pictures are not decoded: a picture of one colour is a thousand times smaller as a file than in memory.

    Raises OSError or av.FFmpegError if it is none.
    """
    limits = {"max_pixels": str(max_pixels)}
    # The last: of a broadcast or of files appended to each other, whose tracks change their numbers, but go on.
    options = {"format_whitelist": formats, "protocol_whitelist": "none", "merge_pmt_versions": "1", **limits}
    container = av.open(file, options=options, metadata_errors="replace")
    for stream in container.streams.video:
        if stream.codec_context is not None:
            stream.codec_context.options = limits
    return container


def tracks(container: av.container.InputContainer, kind: str) -> list[av.stream.Stream]:
    """The tracks of a kind (audio or video) that there is a decoder for; first the one that a player would choose.

    The cover of an audio file is not a video.
    """
    best = container.streams.best(kind)
    found = [
        stream
        for stream in getattr(container.streams, kind)
        if stream.codec_context is not None and not stream.disposition & Disposition.attached_pic
    ]
    return sorted(found, key=lambda stream: (stream is not best, not stream.disposition & Disposition.default))


def demuxed(
    container: av.container.InputContainer, streams: Sequence[av.stream.Stream], report: Callable[[str], None]
) -> Iterator[av.Packet]:
    """The packets of some tracks; where the file cannot be read on, this is reported and they end."""
    try:
        yield from container.demux(streams)
    except (OSError, av.FFmpegError, IndexError) as error:  # the last: a track that was not there at the start
        report(str(getattr(error, "strerror", None) or error))


def decoded(packets: Iterable[av.Packet], report: Callable[[str], None]) -> Iterator[av.VideoFrame | av.AudioFrame]:
    """The frames of one track's packets. What cannot be decoded is reported and left out.

    A frame of which the decoder made a part up says so (`is_corrupt`).
    """
    for packet in packets:
        try:
            yield from packet.decode()
        except av.FFmpegError as error:
            report(error.strerror)


def ending(stream: av.stream.Stream) -> av.Packet:
    """A packet that makes the decoder give what it has kept back."""
    packet = av.Packet()
    packet.stream, packet.time_base = stream, stream.time_base
    return packet


def duration(frame: av.VideoFrame | av.AudioFrame, stream: av.stream.Stream) -> Fraction:
    """Seconds for which a frame lasts."""
    if isinstance(frame, av.AudioFrame):
        return Fraction(frame.samples, frame.sample_rate)
    if frame.duration:
        return frame.duration * frame.time_base
    return 1 / Fraction(stream.average_rate or FRAME_RATE)
