"""What subtitles show and when: by segment or by word, for files and for copies of a video alike."""

import dataclasses
from collections.abc import Iterator, Sequence

from viavsp_jax.app.recognizer import Word
from viavsp_jax.app.transcriber import Transcript
from viavsp_jax.runtime.errors import InputError

_PAUSE = 3.0  # seconds from the start of a word to that of the next: where it is longer, they do not share a subtitle

Lines = tuple[tuple[Word, ...], ...]


@dataclasses.dataclass(frozen=True)
class Style:
    """How words become subtitles. Options with the names of OpenAI's Whisper do what they do there.

    By default, a subtitle is the text of a segment. With a width and a count, subtitles are filled across segments;
    with other options by word, each holds words of one segment.

    Raises InputError for numbers out of bounds.
    """

    max_line_width: int | None = None  # characters; a longer word has a line of its own
    max_line_count: int | None = None  # lines of a subtitle; only together with a width
    max_words_per_line: int | None = None  # of a subtitle; not together with a count of lines
    highlight_words: bool = False  # each word while it is spoken: underlined in files, in colour on pictures
    word_timestamps: bool = False  # in WebVTT, before each word
    min_confidence: float | None = None  # from 0 to 1: words with less are marked as doubtful; None: none are

    def __post_init__(self):
        for name in ("max_line_width", "max_line_count", "max_words_per_line"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}, expected a whole number at least 1")
        if self.min_confidence is not None and not 0 <= self.min_confidence <= 1:
            raise InputError(f"min_confidence is {self.min_confidence}, expected a number from 0 to 1")

    @property
    def by_word(self) -> list[str]:
        """The options in use that need to know when words are said."""
        names = "max_line_width", "max_words_per_line", "highlight_words", "word_timestamps"
        return [name for name in names if getattr(self, name)]

    @property
    def needing_words(self) -> list[str]:
        """The options in use that need words."""
        return self.by_word + ["min_confidence"] * (self.min_confidence is not None)

    @property
    def unused(self) -> str | None:
        """Why one of the options does nothing, a sentence."""
        if self.max_line_count and not self.max_line_width:
            return "max_line_count does nothing without max_line_width"
        if self.max_words_per_line and self.max_line_count:
            return "max_words_per_line does nothing where max_line_width and max_line_count are given"
        return None

    def doubts(self, word: Word) -> bool:
        """Whether a word is likelier wrong than is wanted."""
        return None not in (self.min_confidence, word.confidence) and word.confidence < self.min_confidence

    def written(self, word: Word) -> str:
        """A word as files show it: a doubtful one is [word?]."""
        return f"[{word.text}?]" if self.doubts(word) else word.text


PLAIN = Style()


@dataclasses.dataclass(frozen=True)
class Cue:
    """A subtitle: what is seen at a time."""

    start: float  # seconds
    end: float
    lines: Lines  # at least one, of at least one word; text that is not known by word is one word
    spoken: Word | None = None  # the one of them that is highlighted

    @property
    def words(self) -> list[Word]:
        return [word for line in self.lines for word in line]


def needs_words(style: Style) -> InputError:
    """What to raise for a model that does not tell when words are said."""
    names = style.needing_words
    return InputError(
        f"the model does not tell when each word is said, which {' and '.join(names)} "
        f"need{'s' * (len(names) == 1)}: expected one with a CTC head"
    )


def check(transcript: Transcript, style: Style) -> None:
    """Raises InputError if `style` needs words or their confidence, and the transcript has none."""
    if not style.needing_words:
        return
    if transcript.words is None:
        raise needs_words(style)
    certain = [word.confidence is not None for word in transcript.words]
    if style.min_confidence is not None and certain and not any(certain):
        raise InputError(
            "the model does not tell how likely its words are right, which min_confidence needs: calibrate its "
            "checkpoint (--mode=calibrate)"
        )


def cues(transcript: Transcript, style: Style) -> list[Cue]:
    """The subtitles, in the order of time; segments in which nothing was recognised have none.

    Raises InputError as `check` does.
    """
    check(transcript, style)
    spoken = [segment for segment in transcript.segments if segment.text]
    if not style.by_word:
        return [Cue(*segment.times, (segment.words or (Word(segment.text, *segment.times),),)) for segment in spoken]
    found: list[Lines] = []
    if style.max_line_width and style.max_line_count:
        for run in _between_pauses(transcript.words):
            found += _parts(_filled(run, style), style.max_line_count)
    else:
        for segment in spoken:
            most = style.max_words_per_line or len(segment.words)
            found += [_filled(part, style) for part in _parts(segment.words, most)]
    whole = [Cue(lines[0][0].start, lines[-1][-1].end, lines) for lines in found]
    return [one for cue in whole for one in _by_spoken(cue)] if style.highlight_words else whole


def _parts(items: tuple, most: int) -> list[tuple]:
    return [items[start : start + most] for start in range(0, len(items), most)]


def _between_pauses(words: Sequence[Word]) -> list[list[Word]]:
    runs: list[list[Word]] = []
    for word in words:
        if not runs or word.start - runs[-1][-1].start > _PAUSE:
            runs.append([])
        runs[-1].append(word)
    return runs


def _filled(words: Sequence[Word], style: Style) -> Lines:
    """Words in lines, each as full as it can be."""
    lines: list[list[Word]] = []
    room = 0
    for word in words:
        length = len(style.written(word))
        if lines and (style.max_line_width is None or room > length):
            lines[-1].append(word)
            room -= 1 + length  # a space, too
        else:
            lines.append([word])
            room = (style.max_line_width or 0) - length
    return tuple(map(tuple, lines))


def _by_spoken(cue: Cue) -> Iterator[Cue]:
    """A subtitle once for each of its words, and once more for each pause between them."""
    before = cue.start
    for word in cue.words:
        for start, end, spoken in ((before, word.start, None), (word.start, word.end, word)):
            if round(1000 * end) > round(1000 * start):  # as files write times
                yield Cue(start, end, cue.lines, spoken)
        before = word.end
