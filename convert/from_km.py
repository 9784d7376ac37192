"""Converts the K-Means model of scikit-learn (`.km`) to the centres file of `viavsp_jax.prepare`.

    python -m convert.from_km model.km --output kmeans.safetensors [--layer 12]

Read is what `joblib.dump`, also with compression, and `pickle.dump` make of a MiniBatchKMeans or KMeans of any version
of scikit-learn, without trusting the pickle in it: see convert/unpickle.py. Of the estimator only the centres count, so
others are refused: a BisectingKMeans, say, does not go by the nearest centre.
"""

import argparse
import bz2
import io
import lzma
import math
import pickle
import pickletools
import re
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from convert.unpickle import DAMAGED, VALUES, StandIn, StandInUnpickler
from viavsp_jax.prepare.kmeans import save_centers
from viavsp_jax.runtime.errors import InputError, reported_to_user
from viavsp_jax.runtime.options import new_file, whole

# Until version 0.22 scikit-learn brought its own joblib, and its modules had public names.
JOBLIB_ARRAYS = {f"{package}joblib.numpy_pickle.NumpyArrayWrapper" for package in ("", "sklearn.externals.")}
ESTIMATORS = {
    f"sklearn.cluster.{module}.{name}"
    for module in ("_kmeans", "k_means_")
    for name in ("KMeans", "MiniBatchKMeans")
}  # fmt: skip
# What else an estimator may hold, of all versions: random states above all. It is not looked at.
ALLOWED = VALUES | JOBLIB_ARRAYS | {"copyreg._reconstructor", "builtins.object", "numpy.random.", "sklearn."}

# As many as NumPy has.
_MOST_AXES = 64

# First bytes of what joblib compresses, and what unpacks it.
PACKED = {
    b"\x78": zlib.decompressobj,
    b"\x1f\x8b": lambda: zlib.decompressobj(zlib.MAX_WBITS | 16),  # gzip
    b"BZ": bz2.BZ2Decompressor,
    b"\x5d\x00": lambda: lzma.LZMADecompressor(memlimit=_MOST_MEMORY),
    b"\xfd7zXZ": lambda: lzma.LZMADecompressor(memlimit=_MOST_MEMORY),
}
_LZ4 = b"\x04\x22\x4d\x18"  # Python has nothing to unpack it
# Centres hardly get smaller, labels do; a file of zeros that goes beyond both is there to fill the memory.
_MOST_MEMORY, _MOST_PACKED = 2**28, 100


def read_centers(path: epath.PathLike) -> np.ndarray:
    """The cluster centres of a fitted K-Means, float32[K, D].

    Raises InputError if the file is missing, damaged, no K-Means, names anything not allowed, or holds centres that are
    not finite or contradict the estimator's own sizes.
    """
    path = epath.Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file, expected a K-Means model of scikit-learn")
    content = _unpacked(path.read_bytes(), path)
    try:
        estimator = _KMUnpickler(content, str(path)).load()
        if _name(estimator) not in ESTIMATORS:
            raise InputError(
                f"{path}: holds {_name(estimator) or 'something else'}, expected KMeans or MiniBatchKMeans"
            )
        if "cluster_centers_" not in estimator.state:
            raise InputError(f"{path}: the K-Means model in it has no cluster_centers_, expected one that was fitted")
        centers = _array(estimator.state["cluster_centers_"])
    except DAMAGED as error:
        raise InputError(f"{path}: not a readable K-Means model ({str(error) or type(error).__name__})") from error
    return _checked(centers, estimator.state, path)


def _unpacked(content: bytes, path: epath.Path) -> bytes:
    if content.startswith(_LZ4):
        raise InputError(f"{path}: compressed by LZ4, expected what joblib.dump writes without or by another method")
    make = next((make for first, make in PACKED.items() if content.startswith(first)), None)
    if make is None:
        return content
    most = max(_MOST_MEMORY, _MOST_PACKED * len(content))
    try:
        decompressor = make()
        unpacked = decompressor.decompress(content, most)
    except (zlib.error, lzma.LZMAError, *DAMAGED) as error:
        raise InputError(f"{path}: not a readable K-Means model ({error})") from error
    if not decompressor.eof:
        wrong = f"unpacks to more than {most} bytes" if len(unpacked) == most else "cut off"
        raise InputError(f"{path}: not a readable K-Means model ({wrong})")
    return unpacked


def _name(record: Any) -> str:
    """The class that a stand-in is an instance of; "" for what is none."""
    symbol, args = getattr(record, "symbol", ""), getattr(record, "args", ())
    if symbol == "copyreg._reconstructor" and args:  # how pickle's protocols 0 and 1 make instances
        return getattr(args[0], "symbol", "")
    return symbol


def _checked(centers: np.ndarray, attributes: dict[str, Any], path: epath.Path) -> np.ndarray:
    if centers.ndim != 2 or 0 in centers.shape or centers.dtype.kind != "f":
        raise InputError(f"{path}: cluster_centers_ are {centers.dtype}{list(centers.shape)}, expected floats [K, D]")
    for name, found in zip(("n_clusters", "n_features_in_"), centers.shape, strict=True):
        declared = attributes.get(name, found)
        if type(declared) is int and declared != found:
            raise InputError(f"{path}: {name} is {declared}, but cluster_centers_ are {list(centers.shape)}")
    with np.errstate(over="ignore"):  # reported below
        centers = centers.astype(np.float32)
    if not np.isfinite(centers).all():
        raise InputError(f"{path}: cluster_centers_ hold values that are not finite numbers in float32")
    return centers


class _KMUnpickler(StandInUnpickler):
    """Also takes up the raw bytes that joblib puts behind the record of each array."""

    dispatch = StandInUnpickler.dispatch.copy()

    def __init__(self, content: bytes, path: str):
        self._file = io.BytesIO(content)
        self._size = len(content)
        super().__init__(self._file, path, ALLOWED, encoding="latin-1")

    def load_build(self) -> None:
        super().load_build()
        record = self.stack[-1]
        if isinstance(record, StandIn) and _name(record) in JOBLIB_ARRAYS:
            record.data = self._raw(record.state)

    dispatch[pickle.BUILD[0]] = load_build

    def _raw(self, state: dict[str, Any]) -> bytes | None:
        kind = _kind(state["dtype"])
        if kind.startswith("O"):  # as names of columns; they are a pickle of their own
            for _ in pickletools.genops(self._file):
                pass
            return None
        # Since joblib 1.2 a byte says how many more precede the data, for alignment.
        if state.get("numpy_array_alignment_bytes") is not None:
            self._file.seek(self._file.read(1)[0], io.SEEK_CUR)
        size = _length(state["shape"]) * np.dtype(kind).itemsize
        if size > self._size - self._file.tell():
            raise ValueError(f"an array of shape {list(state['shape'])} is longer than the file")
        return self._file.read(size)


def _array(record: Any) -> np.ndarray:
    """The array that a record of joblib or NumPy stands for."""
    symbol, state = _name(record), getattr(record, "state", None)
    if symbol in JOBLIB_ARRAYS:
        data, dtype, shape, order = record.data, state["dtype"], state["shape"], state["order"]
    elif symbol.endswith("multiarray._reconstruct"):
        _, shape, dtype, by_columns, data = state
        order = "F" if by_columns else "C"
    elif symbol.endswith("numeric._frombuffer"):
        data, dtype, shape, order = record.args
    else:
        raise TypeError("cluster_centers_ is no array")
    if getattr(data, "symbol", None) == "_codecs.encode":  # bytes before pickle's protocol 3
        data = data.args[0]
    if isinstance(data, str):  # bytes of Python 2
        data = data.encode("latin-1")
    dtype = _dtype(dtype)
    if order not in ("C", "F") or not isinstance(data, bytes | bytearray):
        raise TypeError("cluster_centers_ is no array of numbers")
    if len(data) != _length(shape) * dtype.itemsize:
        raise ValueError(f"cluster_centers_ has {len(data)} bytes, not those of an array of shape {list(shape)}")
    return np.frombuffer(data, dtype).reshape(shape, order=order)


def _length(shape: Any) -> int:
    # What it is instead is not shown: lists of references to lists of references, and so on, may be without end.
    if type(shape) is not tuple or len(shape) > _MOST_AXES or not all(type(x) is int and x >= 0 for x in shape):
        raise TypeError("the shape of an array is no tuple of lengths")
    return math.prod(shape)


def _kind(record: Any) -> str:
    """The name that a recorded call of numpy.dtype has got, as f4, U7 or O8."""
    name = record.args[0] if getattr(record, "symbol", None) == "numpy.dtype" else None
    if not isinstance(name, str) or not re.fullmatch("[a-zA-Z][0-9]{1,6}", name):
        raise TypeError(f"an array is of type {name[:9] if isinstance(name, str) else None!r}, expected numbers")
    return name


def _dtype(record: Any) -> np.dtype:
    """The dtype that a recorded call of numpy.dtype stands for; numbers only."""
    name = _kind(record)
    if not re.fullmatch("[fiub][1248]", name):
        raise TypeError(f"an array is of type {name!r}, expected numbers")
    return np.dtype(name).newbyteorder(record.state[1])


@reported_to_user()
def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m convert.from_km", description=__doc__.splitlines()[0])
    parser.add_argument("model", metavar="MODEL.km", help="MiniBatchKMeans or KMeans, as joblib or pickle wrote it")
    parser.add_argument(
        "--output", type=new_file("--output"), required=True, help="file for the centres, e.g. kmeans.safetensors"
    )
    parser.add_argument(
        "--layer", type=whole("--layer", 0), default=12, help="AV-HuBERT layer it was fitted on (default %(default)s)"
    )
    args = parser.parse_args(argv)
    centers = read_centers(args.model)
    save_centers(args.output, centers, {"layer": args.layer})
    print(f"wrote {args.output}: {len(centers)} centres of width {centers.shape[1]}, of layer {args.layer}")


if __name__ == "__main__":
    main()
