"""Damage of the kinds that files from strangers have: cut, spliced, repeated, with false lengths and hostile values.

What a file is tells its name: zip archives, pickles, safetensors, JSON and ArrayRecords are also changed inside, and
packed again. All else, and now and then these too, is changed as bytes or as text.
"""

import contextlib
import io
import itertools
import json
import pathlib
import pickletools
import random
import re
import struct
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

_LIMITS = [2**bits for bits in (7, 8, 15, 16, 31, 32, 40, 63, 64)]
NUMBERS = [0, 1, -1, *_LIMITS, *(limit - 1 for limit in _LIMITS), -(2**31), -(2**63)]
TEXTS = [
    "",
    " ",
    "\0",
    "x" * 5000,
    "../../etc/passwd",
    "/etc/passwd",
    "ệ\u0323\u202e\ud7ff",
    "NaN",
    "1e999",
    "O8",
    "\n\t",
]
VALUES = [*NUMBERS, *TEXTS, None, True, 0.5, float("nan"), float("inf"), 1e308, [], {}, [[]], {"": None}]
# Sequences that an unpickler must not follow: calls by every opcode, extension codes, persistent ids, huge sizes.
PICKLED = [
    b"cposix\nsystem\n(X\x04\0\0\0truetR", b"(X\x04\0\0\0trueiposix\nsystem\n", b"(cposix\nsystem\nX\x04\0\0\0trueo",
    b"\x8c\x08builtins\x8c\x04exec\x93", b"\x82\x01", b"\x83\x01\x01", b"\x84\x01\0\0\0", b"Pevil\n", b"Q", b"R", b"b",
    b"\x81", b"\x92", b"a", b"e", b"s", b"u", b"d", b"t", b"0", b"1", b"2", b"r\xff\xff\xff\x7f", b"j\xff\xff\xff\x7f",
    b"\x8e\xff\xff\xff\xff\0\0\0\0", b"\x8b\xff\xff\xff\x7f", b"I" + b"9" * 5000 + b"\n", b"G" + b"\xff" * 8,
]  # fmt: skip
_TAG = re.compile(rb"[A-Za-z][A-Za-z0-9_ ]{3}")
_EDGE = 512  # bytes at the start and at the end of a file, where headers and footers are


def mutated(name: str, data: bytes, rng: random.Random, donors: Sequence[bytes]) -> bytes:
    """A damaged version of a file, one to four times changed; `donors` are files that parts may be taken from."""
    inside = next((change for suffix, change in _INSIDE.items() if suffix in name), None)
    if inside is not None and rng.random() < 0.7:
        try:
            return inside(data, rng)
        except (ValueError, KeyError, IndexError, zipfile.BadZipFile, struct.error, RecursionError):
            pass  # it was changed already, beyond such a reading
    change = _text if name.endswith((".tsv", ".wrd", ".csv", ".json")) and rng.random() < 0.7 else _bytes
    for _ in range(rng.choice((1, 1, 2, 4))):
        data = change(data, rng, donors)
    return data


def _place(data: bytes, rng: random.Random) -> int:
    """An offset; two of three are near an end."""
    low, high = rng.choice(((0, _EDGE), (len(data) - _EDGE, len(data)), (0, len(data))))
    return rng.randint(max(0, low), max(0, min(high, len(data))))


def _integer(rng: random.Random, data: bytes, size: int, order: str) -> bytes:
    number = rng.choice([*NUMBERS, len(data), len(data) - 1, len(data) + 1])
    return (number % 2 ** (8 * size)).to_bytes(size, order)


def _bytes(data: bytes, rng: random.Random, donors: Sequence[bytes]) -> bytes:
    at, size = _place(data, rng), rng.choice((1, 2, 4, 8))
    length = rng.choice((1, 4, 16, rng.randint(1, max(1, len(data)))))
    kind = rng.randrange(9)
    if kind == 0:
        return data[:at]
    if kind == 1:
        flipped = bytearray(data[at : at + 1] or b"\0")
        flipped[0] ^= 1 << rng.randrange(8)
        return data[:at] + flipped + data[at + 1 :]
    if kind in (2, 3):
        at -= at % size
        return data[:at] + _integer(rng, data, size, rng.choice(("little", "big"))) + data[at + size :]
    if kind == 4 and (tags := [match.start() for match in _TAG.finditer(data[:_EDGE] + data[-_EDGE:])]):
        at = rng.choice(tags)
        at += max(0, len(data) - 2 * _EDGE) if at >= _EDGE else 0
        # Boxes of mp4 have their length before their name, chunks of RIFF after it.
        at, order = rng.choice(((at - 4, "big"), (at + 4, "little")))
        return data[: max(0, at)] + _integer(rng, data, 4, order) + data[max(0, at) + 4 :]
    if kind == 5:
        return data[:at] + data[at + length :]
    if kind == 6:
        return data[:at] + data[at : at + min(length, 4096)] * rng.choice((2, 3, 50)) + data[at:]
    if kind == 7:
        donor = rng.choice(donors)
        return data[:at] + donor[_place(donor, rng) :]
    return data[:at] + rng.randbytes(min(length, 64)) + data[at + rng.choice((0, length)) :]


def _text(data: bytes, rng: random.Random, donors: Sequence[bytes]) -> bytes:
    """Another word, number or separator somewhere."""
    words = re.split(rb"([\t\n,\"]|\d+)", data)
    value = rng.choice([str(rng.choice(NUMBERS)), rng.choice(TEXTS), "\t", "\n", "\r", '"', "{", "]", "\ufeff", ","])
    at = rng.randrange(len(words))
    words[at : at + rng.choice((0, 1, 1, 3))] = [value.encode("utf-8", "surrogatepass")] * rng.choice((1, 1, 1, 40))
    return b"".join(words)


def _json(data: bytes, rng: random.Random) -> bytes:
    return json.dumps(_other_value(json.loads(data), rng)).encode()


def _other_value(value: Any, rng: random.Random) -> Any:
    """The same, but for one value or key somewhere in it."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.1:
        return _deep() if rng.random() < 0.02 else rng.choice(VALUES)
    items = dict(value) if isinstance(value, dict) else dict(enumerate(value))
    key, kind = rng.choice(list(items)), rng.random()
    if kind < 0.15:
        del items[key]
    elif kind < 0.25 and isinstance(value, dict):
        items[rng.choice(TEXTS)] = items.pop(key)
    elif kind < 0.35:
        items[key] = items[rng.choice(list(items))]
    else:
        items[key] = _other_value(items[key], rng)
    return items if isinstance(value, dict) else list(items.values())


def _deep() -> list:
    value = []
    for _ in range(900):
        value = [value]
    return value


def _safetensors(data: bytes, rng: random.Random) -> bytes:
    (size,) = struct.unpack_from("<Q", data)
    header = _json(data[8 : 8 + size], rng)
    return struct.pack("<Q", len(header)) + header + data[8 + size :]


def _pickle(data: bytes, rng: random.Random) -> bytes:
    """Opcodes left out, repeated, put in or in another order, and other numbers and names as their arguments."""
    starts = []
    with contextlib.suppress(ValueError):  # raised where joblib's arrays begin, which are no opcodes
        for _, _, position in pickletools.genops(data):
            starts.append(position)
    codes, end = [data[a:b] for a, b in itertools.pairwise(starts)], starts[-1]
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, other = rng.randrange(len(codes)), rng.randrange(len(codes))
        kind = rng.randrange(5)
        if kind == 0:
            codes[at] = b""
        elif kind == 1:
            codes.insert(at, rng.choice(PICKLED))
        elif kind == 2:
            codes[at] = codes[other]
        elif kind == 3:
            codes[at], codes[other] = codes[other], codes[at]
        else:
            code = codes[at]
            codes[at] = code[:1] + _integer(rng, code, max(1, len(code) - 1), "little")[: len(code) - 1]
    return b"".join(codes) + data[end:]


def _zip(data: bytes, rng: random.Random) -> bytes:
    """Another pickle or another entry, other names of entries, and compression."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    pickles = [number for number, (name, _) in enumerate(entries) if name.endswith(".pkl")]
    at, kind = rng.choice(pickles if rng.random() < 0.8 else range(len(entries))), rng.random()
    name, content = entries[at]
    if kind < 0.8:
        entries[at] = name, _pickle(content, rng) if name.endswith(".pkl") else _bytes(content, rng, [data])
    elif kind < 0.9:
        folder = rng.choice(("../../", "/etc/", "a/b/", "", "\\"))
        entries[at] = folder + name, content
    elif kind < 0.95:
        del entries[at]
    else:
        entries.append(entries[rng.randrange(len(entries))])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", rng.choice([zipfile.ZIP_STORED] * 9 + [zipfile.ZIP_DEFLATED])) as archive:
        for name, content in entries:
            archive.writestr(zipfile.ZipInfo(name), content)  # without the time of day: a case is always the same
    return buffer.getvalue()


def _array_record(data: bytes, rng: random.Random) -> bytes:
    """Another record: with its checksums right, what is in it is looked at."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "records"
        path.write_bytes(data)
        reader = ArrayRecordReader(str(path))
        records = reader.read_all()
        reader.close()
        at = rng.randrange(len(records))
        records[at] = _bytes(records[at], rng, records)
        writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
        for record in records:
            writer.write(record)
        writer.close()
        return path.read_bytes()


_INSIDE: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".pt": _zip,
    ".km": _pickle,
    ".safetensors": _safetensors,
    ".json": _json,
    ".array_record": _array_record,
}
