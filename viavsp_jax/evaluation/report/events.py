"""The curves in TensorBoard's event files: protocol buffers, each after its length and before a checksum."""

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

from etils import epath

if TYPE_CHECKING:
    from tensorboardX.proto.event_pb2 import Event

_HEAD, _FOOT = struct.Struct("<QI"), struct.Struct("<I")  # length and its checksum, checksum of the content

# Step → value, by step.
Curve = dict[int, float]


def read_curves(folder: epath.PathLike) -> dict[str, Curve]:
    """The curves of all event files of a folder, by name; none where there is no folder.

    A run that was stopped and continued has several files. It continues from its last checkpoint: what the file before
    holds from there on is dropped. A file ends where it was cut off, or damaged.
    """
    curves: dict[str, Curve] = {}
    for path in sorted(epath.Path(folder).glob("events.*")):  # the name begins with the time
        for name, curve in _read_file(path).items():
            start = min(curve)
            curves[name] = {step: value for step, value in curves.get(name, {}).items() if step < start} | curve
    return curves


def _read_file(path: epath.Path) -> dict[str, Curve]:
    curves: dict[str, Curve] = {}
    for event in _events(path.read_bytes()):
        for value in event.summary.value:
            if value.HasField("simple_value"):
                curves.setdefault(value.tag, {})[event.step] = value.simple_value
    return {name: dict(sorted(curve.items())) for name, curve in curves.items()}


def _events(data: bytes) -> Iterator["Event"]:
    # Imported here: it brings PyTorch along where that is installed, two seconds that other commands can spare.
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    offset = 0
    while offset + _HEAD.size <= len(data):
        length, _ = _HEAD.unpack_from(data, offset)
        content = data[offset + _HEAD.size : offset + _HEAD.size + length]
        offset += _HEAD.size + length + _FOOT.size
        if offset > len(data) or _FOOT.unpack_from(data, offset - _FOOT.size)[0] != masked_crc32c(content):
            return
        yield Event.FromString(content)
