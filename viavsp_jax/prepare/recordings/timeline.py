"""Times of a file that was made by appending others, or by a receiver that lost its signal: one after the other.

`cat a.ts b.ts` makes a file whose timestamps start over in the middle; so do broadcasts, dash cams, and chained Ogg,
Matroska and fragmented mp4 files. The file is looked through once, without decoding: where the times of a track go back
or, in formats in which times may leap, leap ahead, a new piece begins. Where pieces meet is told by the place in the
file, since packets of several tracks come out of a demuxer in an order of its own. A piece begins when all tracks of
the one before have ended, so pictures and sound stay in step.
"""

import bisect
import collections
import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction

import av
from av.format import Flags

# Seconds: timestamps are rounded, and tracks may be interleaved loosely.
_BACK, _AHEAD = Fraction(1, 10), 10


@dataclasses.dataclass(frozen=True)
class Timeline:
    """The pieces of a file: by track the numbers of the packets with which they begin, and what is added in seconds."""

    starts: Mapping[int, Sequence[float]] = dataclasses.field(default_factory=dict)
    shifts: Sequence[Fraction] = (Fraction(0),)

    def placed(self, packets: Iterable[av.Packet], track: int) -> Iterator[tuple[int, av.Packet]]:
        """All packets of one track with the numbers of their pieces, their times shifted."""
        starts = self.starts.get(track, [0])
        for number, packet in enumerate(packets):
            piece = bisect.bisect_right(starts, number) - 1
            for name in ("pts", "dts"):
                time = getattr(packet, name)
                if time is not None and self.shifts[piece]:
                    setattr(packet, name, time + round(self.shifts[piece] / packet.time_base))
            yield piece, packet


@dataclasses.dataclass(frozen=True)
class _Span:
    """What a packet tells before it is decoded; times in seconds."""

    track: int
    number: int  # of the packets of its track
    position: int  # in the file
    decoded: Fraction
    shown: Fraction
    end: Fraction


def find_timeline(container: av.container.InputContainer, packets: Iterable[av.Packet]) -> tuple[Timeline, Fraction]:
    """Looks through all packets of a file. Returns its timeline, and the seconds of all pieces together."""
    ahead = _AHEAD if container.format.flags & Flags.ts_discont.value else None
    spans = list(_spans(packets))
    pieces = [[]]
    if any(_leaps(spans, ahead)):  # otherwise left as they are: a file with an index may hold them in any order
        spans.sort(key=lambda span: span.position)
        for span, leaps in zip(spans, _leaps(spans, ahead), strict=True):
            if leaps:
                pieces.append([])
            pieces[-1].append(span)
    else:
        pieces = [spans]
    return _joined(pieces) if spans else (Timeline(), Fraction(0))


def _spans(packets: Iterable[av.Packet]) -> Iterator[_Span]:
    positions: dict[int, int] = {}
    counts: collections.Counter[int] = collections.Counter()
    for packet in packets:
        track, unit = packet.stream_index, packet.time_base
        # Of several packets that lie in one of the container's, only the first has a place.
        if packet.pos is not None and packet.pos >= 0:
            positions[track] = packet.pos
        if packet.dts is not None:
            shown = (packet.dts if packet.pts is None else packet.pts) * unit
            end = shown + (packet.duration or 0) * unit
            yield _Span(track, counts[track], positions.get(track, 0), packet.dts * unit, shown, end)
        counts[track] += 1


def _leaps(spans: Iterable[_Span], ahead: int | None) -> Iterator[bool]:
    """Whether a new piece begins with a span."""
    before: dict[int, Fraction] = {}
    for span in spans:
        step = span.decoded - before.get(span.track, span.decoded)
        leaps = step < -_BACK or (ahead is not None and step > ahead)
        if leaps:
            before.clear()
        before[span.track] = span.decoded
        yield leaps


def _joined(pieces: Sequence[Sequence[_Span]]) -> tuple[Timeline, Fraction]:
    shifts = [Fraction(0)]
    first = min(span.shown for span in pieces[0])
    end = max(span.end for span in pieces[0])
    for piece in pieces[1:]:
        shifts.append(end - min(span.shown for span in piece))
        end = shifts[-1] + max(span.end for span in piece)
    starts = {span.track: [math.inf] * len(pieces) for piece in pieces for span in piece}
    for number, piece in enumerate(pieces):
        for span in piece:
            starts[span.track][number] = min(starts[span.track][number], span.number)
    for numbers in starts.values():  # a track may not be in all of them
        numbers[:] = [0, *(min(numbers[piece:]) for piece in range(1, len(pieces)))]
    return Timeline(starts, shifts), end - first
