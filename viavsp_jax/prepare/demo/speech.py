"""Vietnamese speech from eSpeak NG, with the time of every phoneme.

eSpeak NG is reached through ctypes; the PyPI package `espeakng-loader` carries the library and its data.
"""

import ctypes
import functools
import math
import unicodedata
import zlib
from _ctypes import dlclose
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.signal import resample_poly

from viavsp_jax.data.features import SAMPLE_RATE, SAMPLES_PER_FRAME
from viavsp_jax.runtime.errors import InputError

SILENCE = "sil"

LEAD_SECONDS, TAIL_SECONDS = 0.16, 0.12
# A syllable-final stop is reported at its release; the closure, silent and about this long, comes before.
FINAL_CLOSURE_SECONDS = 0.04
STOPS = frozenset({"b", "p", "t", "t̪", "ɗ", "k", "kh", "c", "cr", "tʃ"})
_VOWEL_LETTERS = frozenset("aeiouyɛɔə")
_NOISE_FLOOR_RMS = 3.0  # of int16 full scale, about -81 dBFS

# Combining mark of a syllable in NFD -> tone; a syllable with none of them has tone 1 (ngang).
_TONE_OF_MARK = {"\u0300": 2, "\u0301": 3, "\u0309": 4, "\u0303": 5, "\u0323": 6}
NUM_TONES = 7  # 0 is silence

# Constants of speak_lib.h.
_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE = 0x0001 | 0x0002 | 0x8000  # phoneme events, named in IPA, no exit() on failure
_CHARS_UTF8, _POSITION_CHARACTER = 1, 1
_EVENT_END, _EVENT_PHONEME = 0, 7
_RATE, _PITCH, _RANGE = 1, 3, 4


class Phoneme(NamedTuple):
    """IPA name without stress, start and end in seconds, tone of the syllable (1 to 6) and which of the text it is.

    In silence, tone 0 of syllable -1.
    """

    name: str
    start: float
    end: float
    tone: int
    syllable: int


@dataclass(frozen=True)
class Speaker:
    """A voice of eSpeak NG: `voice` such as "vi" with `variant` such as "f3"; pitch and pitch range 0 to 99.

    `rate` is in words (here: syllables) a minute, `loudness` the RMS of the speech in dB of full scale.
    """

    id: str
    voice: str
    variant: str
    pitch: int
    pitch_range: int
    rate: int
    loudness: float


@dataclass(frozen=True)
class Speech:
    """int16[N] samples at 16 kHz, N a multiple of 640; phonemes that cover all of them without a gap."""

    samples: np.ndarray
    phonemes: tuple[Phoneme, ...]

    def word_times(self) -> list[tuple[float, float]]:
        """(start, end) in seconds of each syllable, from its first sound to its last; in Vietnamese they are words."""
        spans = [
            [phoneme for phoneme in self.phonemes if phoneme.syllable == number]
            for number in range(self.phonemes[-2].syllable + 1)
        ]
        return [(span[0].start, span[-1].end) for span in spans]


class _EventId(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    ]


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@functools.cache
def _library_and_data() -> tuple[str, str]:
    try:
        import espeakng_loader
    except ImportError as error:
        raise InputError(
            "the demo corpus needs eSpeak NG, expected as the Python package espeakng-loader "
            f"(pip install espeakng-loader): {error}"
        ) from error
    return espeakng_loader.get_library_path(), espeakng_loader.get_data_path()


@contextmanager
def _engine() -> Iterator[tuple[ctypes.CDLL, int]]:
    """A freshly loaded eSpeak NG and its sample rate.

    The synthesizer keeps oscillator phases in static variables that no call resets, so what it says depends
    on all it has said before. Loading the library anew, about 1 ms, makes an utterance depend on nothing
    but its text and its speaker.
    """
    path, data = _library_and_data()
    try:
        library = ctypes.CDLL(path)
    except OSError as error:
        raise InputError(f"{path}: cannot load the eSpeak NG library: {error}") from error
    try:
        rate = library.espeak_Initialize(_OUTPUT_SYNCHRONOUS, 0, data.encode(), _INITIALIZE)
        if rate <= 0:
            raise InputError(f"{data}: eSpeak NG cannot read its data folder")
        try:
            library.espeak_ng_SetRandSeed(ctypes.c_long(1))
            yield library, rate
        finally:
            library.espeak_Terminate()
    finally:
        dlclose(library._handle)


def _speak(text: str, speaker: Speaker) -> tuple[np.ndarray, int, list[tuple[str, int, int]]]:
    """int16 samples, their rate, and (IPA name, sample, text position) of every phoneme event."""
    pieces: list[bytes] = []
    events: list[tuple[bytes, int, int]] = []

    def receive(wave, count, event) -> int:
        if wave and count:
            pieces.append(ctypes.string_at(wave, 2 * count))
        index = 0
        while event[index].type != _EVENT_END:
            if event[index].type == _EVENT_PHONEME:
                events.append((bytes(event[index].id.string), event[index].sample, event[index].text_position))
            index += 1
        return 0

    callback = _Callback(receive)
    encoded = text.encode()
    with _engine() as (library, rate):
        library.espeak_SetSynthCallback(callback)
        voice = f"{speaker.voice}+{speaker.variant}"
        # An unknown variant would be passed over in silence.
        known = (Path(_library_and_data()[1]) / "voices" / "!v" / speaker.variant).is_file()
        if not known or library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise InputError(f"speaker {speaker.id}: eSpeak NG has no voice {voice!r}")
        library.espeak_SetParameter(_RATE, speaker.rate, 0)
        library.espeak_SetParameter(_PITCH, speaker.pitch, 0)
        library.espeak_SetParameter(_RANGE, speaker.pitch_range, 0)
        size = ctypes.c_size_t(len(encoded) + 1)
        status = library.espeak_Synth(encoded, size, 0, _POSITION_CHARACTER, 0, _CHARS_UTF8, None, None)
    if status != 0 or not pieces:
        raise InputError(f"{text!r}: eSpeak NG (status {status}) says nothing, expected Vietnamese syllables")
    named = [(name.decode().strip("ˈˌ"), sample, position) for name, sample, position in events]
    return np.frombuffer(b"".join(pieces), np.int16), rate, named


def tone_of(syllable: str) -> int:
    """Tone of a written syllable: 1 ngang, 2 huyền, 3 sắc, 4 hỏi, 5 ngã, 6 nặng."""
    return next((_TONE_OF_MARK[c] for c in unicodedata.normalize("NFD", syllable) if c in _TONE_OF_MARK), 1)


def _syllables_by_position(text: str) -> dict[int, tuple[int, int]]:
    """1-based position of each syllable's first character -> its tone, and its number from 0."""
    syllables, position = {}, 1
    for number, syllable in enumerate(text.split(" ")):
        syllables[position] = tone_of(syllable), number
        position += len(syllable) + 1
    return syllables


def is_vowel(name: str) -> bool:
    """Whether a phoneme, by its IPA name, is a vowel."""
    return name[:1] in _VOWEL_LETTERS


def _segments(events: list[tuple[str, int, int]], text: str, rate: int, length: int) -> list[Phoneme]:
    """Phoneme events (samples) -> phonemes (seconds) from the first sound to the last, without gaps.

    A pause inside the utterance is the closure of the sound that follows it, and counts as part of it.
    """
    syllables = _syllables_by_position(text)
    spoken = [(name, *syllables[position]) for name, _, position in events if name]
    starts, pause = [], None
    for name, sample, _ in events:
        if not name:
            pause = sample if pause is None else pause
        else:
            starts.append((sample if pause is None else pause) / rate)
            pause = None
    starts.append((length if pause is None else pause) / rate)
    for i in range(1, len(spoken)):
        if spoken[i][0] in STOPS and is_vowel(spoken[i - 1][0]):
            starts[i] -= min(FINAL_CLOSURE_SECONDS, (starts[i] - starts[i - 1]) / 2)
    return [
        Phoneme(name, start, end, tone, number)
        for (name, tone, number), start, end in zip(spoken, starts, starts[1:], strict=False)
        if end > start
    ]


def synthesize(text: str, speaker: Speaker) -> Speech:
    """Speaks `text` (lower-case NFC syllables with single spaces between them).

    The same text and speaker give the same samples, in any process and any order.
    Raises InputError when eSpeak NG cannot be loaded, has no such voice or says nothing.
    """
    raw, rate, events = _speak(text, speaker)
    divisor = math.gcd(SAMPLE_RATE, rate)
    wave = resample_poly(raw.astype(np.float64), SAMPLE_RATE // divisor, rate // divisor)
    wave *= 32768 * 10 ** (speaker.loudness / 20) / np.sqrt(np.mean(wave**2))

    lead = round(LEAD_SECONDS * SAMPLE_RATE)
    used = lead + len(wave) + round(TAIL_SECONDS * SAMPLE_RATE)
    total = -(-used // SAMPLES_PER_FRAME) * SAMPLES_PER_FRAME
    # Not digital silence: a filterbank of exact zeros is nothing a microphone gives.
    rng = np.random.default_rng(zlib.crc32(f"{speaker.id} {text}".encode()))
    padded = rng.normal(0, _NOISE_FLOOR_RMS, total)
    padded[lead : lead + len(wave)] += wave

    offset = lead / SAMPLE_RATE
    spoken = [p._replace(start=p.start + offset, end=p.end + offset) for p in _segments(events, text, rate, len(raw))]
    phonemes = (
        Phoneme(SILENCE, 0.0, spoken[0].start, 0, -1),
        *spoken,
        Phoneme(SILENCE, spoken[-1].end, total / SAMPLE_RATE, 0, -1),
    )
    return Speech(np.clip(np.round(padded), -32768, 32767).astype(np.int16), phonemes)
