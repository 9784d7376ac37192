"""Wav files of 16-bit PCM: where their samples lie, whether all of them are there, and how speech is written.

The standard library's reader knows neither sizes left open by what writes to a pipe nor, in Python 3.11, extensible
headers, which FFmpeg writes for some layouts.
"""

import dataclasses
import os
import struct
import wave
from pathlib import Path
from typing import BinaryIO

import numpy as np

from viavsp_jax.data.features import SAMPLE_RATE

_PCM, _EXTENSIBLE = 0x0001, 0xFFFE
_CODINGS = {0x0003: "floating point", 0x0006: "A-law", 0x0007: "mu-law", 0x0002: "ADPCM", 0x0055: "MP3"}
# What is written in place of a size where the file cannot be written to again: by FFmpeg, by SoX, by others.
_UNKNOWN = (0xFFFFFFFF, 0x7FFFF000, 0)
_MOST_CHUNKS = 1000  # before the samples


@dataclasses.dataclass(frozen=True)
class Layout:
    """What the header of a wav file says, and what of it is there."""

    rate: int
    channels: int
    bits: int
    start: int  # of the samples, in bytes
    size: int  # of the samples, in bytes, as the header says or, where it says none, up to the end of the file
    found: int  # bytes of them that are there


def read_layout(path: str | Path) -> Layout:
    """Raises ValueError, with the reason, if it is not a wav file of PCM."""
    with open(path, "rb") as file:
        try:
            return _read(file, os.fstat(file.fileno()).st_size)
        except struct.error:
            raise ValueError("unexpected end of file") from None


def read_samples(path: str | Path, layout: Layout) -> np.ndarray:
    """The samples of a file of 16 bit: int16[n]."""
    with open(path, "rb") as file:
        file.seek(layout.start)
        return np.frombuffer(file.read(layout.found // 2 * 2), "<i2").astype(np.int16)


def write_speech(path: str | Path, samples: np.ndarray) -> None:
    """Writes int16[n] as 16 kHz, mono."""
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", "not compressed"))
        file.writeframes(samples.astype("<i2").tobytes())


def _read(file: BinaryIO, length: int) -> Layout:
    name, riff_size, kind = struct.unpack("<4sI4s", file.read(12))
    if name == b"RIFX":
        raise ValueError("its numbers are big-endian, RIFX, expected RIFF")
    if name not in (b"RIFF", b"RF64", b"BW64") or kind != b"WAVE":
        raise ValueError("no RIFF header of a wav file")
    form, long_size = None, None
    for _ in range(_MOST_CHUNKS):
        name, size = struct.unpack("<4sI", file.read(8))
        start = file.tell()
        if name == b"data":
            break
        if name == b"fmt ":
            form = _read_format(file, size)
        elif name == b"ds64":  # sizes beyond 32 bits
            long_size = struct.unpack("<QQ", file.read(16))[1]
        file.seek(start + size + size % 2)
    else:
        raise ValueError(f"no samples after {_MOST_CHUNKS} chunks")
    if form is None:
        raise ValueError("no format before the samples")
    rest = length - start
    if long_size and size == 0xFFFFFFFF:
        size = long_size
    # A file without samples says 0, too, but then the whole has the size that is said.
    elif size in _UNKNOWN and not (size == 0 and riff_size + 8 in (length, length - 1)):
        size = rest
    return Layout(*form, start, size, max(0, min(size, rest)))


def _read_format(file: BinaryIO, size: int) -> tuple[int, int, int]:
    """Samples a second, channels, bits of a sample."""
    coding, channels, rate, _, _, bits = struct.unpack("<HHIIHH", file.read(16))
    if coding == _EXTENSIBLE and size >= 40:
        _, _, _, coding = struct.unpack("<HHIH", file.read(10))  # of the last, a GUID, the first two bytes
    if coding != _PCM:
        raise ValueError(f"its samples are coded as {_CODINGS.get(coding, f'0x{coding:04x}')}, expected PCM")
    return rate, channels, bits
