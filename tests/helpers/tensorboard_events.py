"""Reads TensorBoard event files: length-prefixed protocol buffers."""

import pathlib
import struct

from tensorboardX.proto.event_pb2 import Event


def _values(folder: pathlib.Path):
    for path in sorted(folder.glob("events.*")):
        data, offset = path.read_bytes(), 0
        while offset < len(data):
            (length,) = struct.unpack_from("<Q", data, offset)
            event = Event.FromString(data[offset + 12 : offset + 12 + length])
            yield from ((event.step, value) for value in event.summary.value)
            offset += length + 16


def scalars(folder: pathlib.Path) -> dict[str, dict[int, float]]:
    """Name → step → value of every curve in the event files of a folder."""
    curves: dict[str, dict[int, float]] = {}
    for step, value in _values(folder):
        if value.HasField("simple_value"):
            curves.setdefault(value.tag, {})[step] = value.simple_value
    return curves


def texts(folder: pathlib.Path) -> dict[str, dict[int, str]]:
    """The same of texts."""
    found: dict[str, dict[int, str]] = {}
    for step, value in _values(folder):
        if value.metadata.plugin_data.plugin_name == "text":
            found.setdefault(value.tag.removesuffix("/text_summary"), {})[step] = value.tensor.string_val[0].decode()
    return found
