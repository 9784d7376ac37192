"""The sound of a recording as it is in its file, not as the model hears it, for a copy of the recording as mp4."""

from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np

from viavsp_jax.prepare.recordings.recording import Recording, Track

_COPIED = ("aac", "ac3", "alac", "eac3", "flac", "mp3", "opus")  # mp4 holds more, which few players play
_LAYOUTS = {1: "mono", 3: "3.0", 4: "quad", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
_BIT_RATE = 96_000  # of each channel that is encoded anew
# Seconds: timestamps are rounded; where they differ by more from the end of what was before, there is a gap.
_TOLERANCE, _ROUNDED = Fraction(1, 10), Fraction(1, 500)


def add_sound(container: av.container.OutputContainer, recording: Recording) -> Iterator[tuple[Fraction, av.Packet]]:
    """Adds a track with the recording's own sound, if it has any, to an mp4 that is begun.

    Its packets are copied where mp4 can hold them. Other sound, and such as is damaged or has gaps, is encoded as AAC
    at its own rate and with its own channels.

    Returns the packets to write and when they are due, in seconds since the recording's start.
    """
    with recording.track("audio") as track:
        if track is None:
            return iter(())
        source = track.stream.codec_context
        if source.codec.canonical_name in _COPIED and track.whole and _is_seamless(track):
            return _copied(recording, container.add_stream_from_template(track.stream))
        rates = [rate for rate in av.Codec("aac", "w").audio_rates if rate >= source.sample_rate]
        rate = min(rates, default=max(av.Codec("aac", "w").audio_rates))
        stream = container.add_stream("aac", rate=rate, layout=_layout(source.layout, rate))
        stream.bit_rate = _BIT_RATE * stream.layout.nb_channels
        return _encoded(recording, stream)


def _is_seamless(track: Track) -> bool:
    """Whether its packets follow one another from the first to the last, and all are to be heard."""
    expected = None
    for packet, time in track.packets:
        length = _samples(packet, track.stream.codec_context)
        if time is None or not length or packet.is_corrupt or (packet.is_discard and time > 0):
            return False
        if expected is not None and abs(time - expected) > _TOLERANCE:
            return False
        # Not the sum of lengths: with a clock that is a bit slow, times differ from that by more and more.
        expected = time + Fraction(length, track.stream.codec_context.sample_rate)
    return expected is not None


def _copied(recording: Recording, stream: av.stream.Stream) -> Iterator[tuple[Fraction, av.Packet]]:
    with recording.track("audio") as track:
        source = track.stream.codec_context
        due = -source.delay  # what a decoder has to leave out is before the start
        for number, (packet, time) in enumerate(track.packets):
            # Where the container rounds times, to milliseconds mostly, packets would overlap.
            at = round(time * source.sample_rate)
            if abs(at - due) > source.sample_rate * (_TOLERANCE / 2 if number else _ROUNDED):
                due = at if number == 0 else max(at, due)
            samples = _samples(packet, source)
            packet.stream, packet.time_base = stream, Fraction(1, source.sample_rate)
            packet.pts, packet.dts, packet.duration = due, due, samples
            due += samples
            yield time, packet


def _samples(packet: av.Packet, source: av.audio.codeccontext.AudioCodecContext) -> int:
    """How many are in it; 0 if nothing says so."""
    told = round((packet.duration or 0) * packet.time_base * source.sample_rate)
    # The last may be cut short.
    usual = not told or abs(told - source.frame_size) <= source.sample_rate * _ROUNDED
    return source.frame_size if usual else told


def _encoded(recording: Recording, stream: av.audio.stream.AudioStream) -> Iterator[tuple[Fraction, av.Packet]]:
    for frame in _seamless(recording, stream):
        for packet in stream.encode(frame):
            yield packet.dts * packet.time_base, packet


def _seamless(recording: Recording, stream: av.audio.stream.AudioStream) -> Iterator[av.AudioFrame | None]:
    """Frames as the encoder of a stream wants them, numbered by samples; None is the end."""
    written = 0
    with recording.track("audio") as track:
        for frame in _resampled(track, stream.codec_context):
            frame.pts, frame.time_base = written, Fraction(1, stream.codec_context.sample_rate)
            written += frame.samples
            yield frame
    yield None


def _resampled(track: Track, wanted: av.audio.codeccontext.AudioCodecContext) -> Iterator[av.AudioFrame]:
    """One after the other, with silence in gaps and before the first."""
    rate = wanted.sample_rate
    resampler, setup, given = None, None, 0  # samples, at the rate that is wanted
    for frame, time, end in track.frames:
        before, setup = setup, (frame.format.name, frame.layout.name, frame.sample_rate)
        if resampler is None or setup != before or time * rate - given > rate * _TOLERANCE:
            yield from resampler.resample(None) if resampler else ()
            resampler = av.AudioResampler(wanted.format, wanted.layout, rate)
            for start in range(given, round(time * rate), rate):
                yield _silence(min(rate, round(time * rate) - start), wanted)
            given = max(given, round(time * rate))
        frame.pts = None  # they are counted
        yield from resampler.resample(frame)
        given += round((end - time) * rate)
    yield from resampler.resample(None) if resampler else ()


def _silence(samples: int, wanted: av.audio.codeccontext.AudioCodecContext) -> av.AudioFrame:
    silence = np.zeros((wanted.layout.nb_channels, samples), np.float32)
    frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout=wanted.layout.name)
    frame.sample_rate = wanted.sample_rate
    return frame


def _layout(own: av.AudioLayout, rate: int) -> av.AudioLayout:
    """The recording's own loudspeakers if AAC has them. Of some files it is only known how many there are."""
    for name in (own.name, _LAYOUTS.get(own.nb_channels, "stereo")):
        context = av.CodecContext.create("aac", "w")
        context.format, context.layout, context.sample_rate, context.time_base = "fltp", name, rate, Fraction(1, rate)
        try:
            context.open()
        except (av.FFmpegError, ValueError):
            continue
        break
    return context.layout
