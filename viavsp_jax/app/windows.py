"""What of a recording is transcribed: windows of speech, no longer than the clips that a model was trained on.

Speech is found by the sound and, where there is none, by the movement of the lips. Windows begin and end a little
outside of it. Speech that is longer is cut where it is quietest; there, each window also hears a little of the other.

Letters: T video frames (25 a second), n audio samples (16,000 a second).
"""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from viavsp_jax.app.inputs import Source
from viavsp_jax.data.features import SAMPLES_PER_FRAME
from viavsp_jax.prepare.recordings import voice
from viavsp_jax.prepare.recordings.sound import is_silent
from viavsp_jax.prepare.recordings.tracks import loudness

# A sound that reaches the analysis windows of a frame may lie up to so many samples behind the frame.
_OVERLAP = 240
# Each cut costs as much as one in this share of the range from the quietest to the loudest frame.
_COST = 0.1
_BEFORE, _AFTER = 5, 4  # frames by which a window is longer than its speech
_BOTH_HEAR = 3  # frames on either side of a cut that both windows hear, a short syllable in all; fewer in tiny windows
# Share of a window in which a mouth has to be seen for lips to be read; the second by a model that was trained on clips
# of which a part is not seen.
_LEAST_SEEN, _LEAST_SEEN_AT_ALL = 0.8, 0.2


@dataclasses.dataclass(frozen=True)
class Window:
    """A part of a recording that the model gets at once."""

    first: int  # frame, 25 a second
    end: int  # the frame after its last
    cut: tuple[int, int]  # frames [start, end) that are its own; what it hears beyond a cut is another's, too
    modality: str  # av, audio or video

    @property
    def goes_on(self) -> bool:
        """Whether it begins amid what the window before it ends with."""
        return self.cut[0] > self.first


def plan(
    source: Source,
    modality: str | None,
    threshold: float | None,
    longest: int,
    progress: Callable[[float], None] | None = None,
    knows_lost_video: bool = False,
) -> list[Window]:
    """The windows of a recording, in the order of time.

    Args:
      source: sound, mouth crops or both.
      modality: that of all windows; None: for each what can be heard and seen there.
      threshold: probability from which on a frame is speech; None: all of the recording is transcribed, but for what
        is silent.
      longest: frames of a window.
      progress: called now and then with the share that is done.
      knows_lost_video: of the model, see Recognizer: then fewer pictures have to show a mouth.
    """
    least = _LEAST_SEEN_AT_ALL if knows_lost_video else _LEAST_SEEN
    windows, seam = [], min(_BOTH_HEAR, longest // 4)
    if source.samples is not None:
        loud = loudness(source.samples, source.num_frames)
        for span in _heard(source, threshold, longest, progress):
            for own in _cut_up(loud, span, longest, seam):
                if not is_silent(samples_of(source.samples, *own)):
                    chosen = modality or ("av" if _share_seen(source, own) >= least else "audio")
                    windows.append(_window(own, span, seam, chosen))
    if source.frames is not None and modality in (None, "video"):
        movement = voice.lip_movement(source.frames, source.seen)
        for span in _mouthed(source, movement, threshold, longest):
            windows += [_window(own, span, seam, "video") for own in _cut_up(movement, span, longest, seam)]
    return sorted(windows, key=lambda window: window.first)


def _heard(
    source: Source, threshold: float | None, longest: int, progress: Callable[[float], None] | None
) -> voice.Spans:
    """Speech that can be heard, with margins."""
    if threshold is None:
        return [(0, source.num_frames)]
    probability = voice.speech_probability(source.samples, source.num_frames, progress)
    return list(_widened(voice.spoken(probability, threshold), np.zeros(source.num_frames, bool), longest))


def _mouthed(source: Source, movement: np.ndarray, threshold: float | None, longest: int) -> voice.Spans:
    """Speech that can only be seen, where there is no sound; margins do not reach into pictures that stand still."""
    heard = np.zeros(source.num_frames, bool)
    if source.samples is not None:
        heard = ~voice.without_sound(source.samples, source.num_frames)
    if threshold is None:
        return [] if heard.any() else [(0, source.num_frames)]
    spans = [span for span in voice.mouthed(np.where(heard, 0, movement)) if voice.talks(source.frames[slice(*span)])]
    return list(_widened(spans, heard | ~source.seen, longest))


def _share_seen(source: Source, own: tuple[int, int]) -> float:
    return 0.0 if source.frames is None else float(source.seen[slice(*own)].mean())


def _widened(spans: voice.Spans, closed: np.ndarray, longest: int) -> Iterator[tuple[int, int]]:
    """Spans with margins, which end in the middle of a pause, and where `closed`, bool[T], begins.

    Where a span with margins would be too long for a window but fits without them, they are smaller.
    """
    least = 0
    for number, (start, end) in enumerate(spans):
        most = len(closed) if number + 1 == len(spans) else (end + spans[number + 1][0]) // 2
        room = longest - (end - start)
        before, after = (_BEFORE, _AFTER) if room < 0 else (min(_BEFORE, room - room // 2), min(_AFTER, room // 2))
        first, last = start, end
        while first > max(least, start - before) and not closed[first - 1]:
            first -= 1
        while last < min(most, end + after) and not closed[last]:
            last += 1
        yield first, last
        least = most


def _cut_up(activity: np.ndarray, span: tuple[int, int], longest: int, seam: int) -> voice.Spans:
    """A span in parts; parts of a longer one leave room for what is heard beyond a cut. `activity` is of all frames."""
    start, end = span
    parts = [(0, end - start)] if end - start <= longest else cut(activity[start:end], longest - 2 * seam)
    return [(start + first, start + last) for first, last in parts]


def _window(own: tuple[int, int], span: tuple[int, int], seam: int, modality: str) -> Window:
    """A part of a span, with what it hears beyond cuts."""
    return Window(max(span[0], own[0] - seam), min(span[1], own[1] + seam), own, modality)


def cut(activity: np.ndarray, longest: int) -> list[tuple[int, int]]:
    """Windows [start, end) that cover all frames, none longer than `longest`, cut where there is least activity.

    Of all ways to cut into windows of a third of `longest` at least, it takes the one whose cuts lie in the quietest
    frames together, and each further cut has a price.

    Args:
      activity: float64[T], loudness or motion of each frame.
      longest: frames of a window, at least 3.
    """
    total, shortest = len(activity), max(1, longest // 3)
    if total <= longest:
        return [(0, total)]
    spread = np.ptp(activity) or 1.0
    quiet = (activity - activity.min()) / spread
    # A cut lies between two frames.
    price = np.append(np.append(0.0, (quiet[1:] + quiet[:-1]) / 2 + _COST), 0.0)
    best, before = np.full(total + 1, np.inf), np.zeros(total + 1, int)
    best[0] = 0.0
    for end in range(shortest, total + 1):
        starts = np.arange(max(0, end - longest), end - shortest + 1)
        chosen = starts[np.argmin(best[starts])]
        best[end], before[end] = best[chosen] + price[end], chosen
    windows, end = [], total
    while end:
        windows.append((int(before[end]), end))
        end = int(before[end])
    return windows[::-1]


def samples_of(samples: np.ndarray, start: int, end: int) -> np.ndarray:
    """What is heard in the frames [start, end): int16[n] → int16[m]; nothing where the sound has ended."""
    return samples[start * SAMPLES_PER_FRAME : end * SAMPLES_PER_FRAME + _OVERLAP]
