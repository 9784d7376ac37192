"""Reads TensorBoard event files: length-prefixed protocol buffers."""

import pathlib
import struct

from tensorboardX.proto.event_pb2 import Event


def scalars(folder: pathlib.Path) -> dict[str, dict[int, float]]:
    """Name → step → value of every curve in the event files of a folder."""
    curves: dict[str, dict[int, float]] = {}
    for path in sorted(folder.glob("events.*")):
        data, offset = path.read_bytes(), 0
        while offset < len(data):
            (length,) = struct.unpack_from("<Q", data, offset)
            event = Event.FromString(data[offset + 12 : offset + 12 + length])
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    curves.setdefault(value.tag, {})[event.step] = value.simple_value
            offset += length + 16
    return curves
