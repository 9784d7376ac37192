"""Reads pickles that strangers made: nothing that they name is ever imported or called.

A pickle names classes and functions; here each of them is replaced by an inert stand-in that only records its
arguments and its state, and a name that is not on the reader's allow-list is refused.
"""

import pickle
import struct
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection
from typing import Any, BinaryIO, ClassVar

from viavsp_jax.runtime.errors import InputError

# The only real classes: a pickle stores items into them, and neither they nor a method of theirs can be
# altered from a pickle (they are immutable C types).
CONTAINERS = {"collections.OrderedDict": OrderedDict, "collections.defaultdict": defaultdict}

# Named by plain values and by NumPy's arrays and scalars, whoever pickled them.
VALUES = frozenset(
    {"_codecs.encode", "numpy.dtype", "numpy.ndarray"}
    | {f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")}
    | {f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core")}
    | {f"builtins.{name}" for name in "bool bytearray bytes dict float int list long set str tuple".split()}
)

# A tuple of tuples of … that share their parts is hashed, as a key, once for each mention of them, and so may be
# compared, as frozensets also are. No honest one is near this.
_MOST_IN_A_TUPLE = 10_000
_TUPLES = (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.FROZENSET)

# What a damaged or hostile file makes a zip reader, an unpickler or the views into its arrays raise.
DAMAGED = (
    pickle.UnpicklingError, zipfile.BadZipFile, OSError, EOFError, LookupError, TypeError, ValueError,
    AttributeError, ArithmeticError, MemoryError, RuntimeError, struct.error,
)  # fmt: skip


class StandIn:
    """Takes the place of a class or function named by the pickle; a subclass is made for each name."""

    symbol: ClassVar[str]
    args: tuple
    state: Any

    def __new__(cls, *args: Any) -> "StandIn":
        self = super().__new__(cls)
        self.args = args
        self.state = None
        return self

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _counted(load: Callable[["StandInUnpickler"], None]) -> Callable[["StandInUnpickler"], None]:
    """An opcode that makes a tuple, with a limit of what is mentioned in it."""

    def load_tuple(self: "StandInUnpickler") -> None:
        load(self)
        made = self.stack[-1]
        size = 1 + sum(self.tuples.get(id(part), (part, 1))[1] for part in made)
        if size > _MOST_IN_A_TUPLE:
            raise pickle.UnpicklingError(f"a tuple of more than {_MOST_IN_A_TUPLE} parts")
        self.tuples[id(made)] = made, size

    return load_tuple


# The unpickler in Python, as joblib uses it: its memo is a dict, so that a huge index in a few bytes takes no
# memory, and it can stop between two opcodes, where joblib puts arrays.
class StandInUnpickler(pickle._Unpickler):
    """Builds containers, and stand-ins for all else.

    Args:
      file: the pickle, in memory.
      path: its name in errors.
      allowed: names that stand-ins are made for; one with a dot at its end means a whole package.
      encoding: of the strings of Python 2.

    `load` raises InputError for a name not on the allow-list, and one of DAMAGED for what is no pickle.
    """

    dispatch = pickle._Unpickler.dispatch.copy()
    for _opcode in _TUPLES:
        dispatch[_opcode[0]] = _counted(dispatch[_opcode[0]])

    def __init__(self, file: BinaryIO, path: str, allowed: Collection[str], encoding: str = "ASCII"):
        super().__init__(file, encoding=encoding)
        self._path = path
        self._names = frozenset(allowed)
        self._packages = tuple(name for name in allowed if name.endswith("."))
        self._stand_ins: dict[str, type[StandIn]] = {}
        # Tuples and the number of their parts, by id; who holds an object keeps its id from being used again.
        self.tuples: dict[int, tuple[tuple | frozenset, int]] = {}

    def find_class(self, module: str, name: str) -> type:
        if self.proto < 3:  # these protocols write Python 2's names
            names = pickle._compat_pickle
            module, name = names.NAME_MAPPING.get((module, name), (names.IMPORT_MAPPING.get(module, module), name))
        symbol = f"{module}.{name}"
        if symbol in CONTAINERS:
            return CONTAINERS[symbol]
        if symbol not in self._names and not symbol.startswith(self._packages):
            raise InputError(f"{self._path}: refused, the pickle in it names {symbol}, which is not on the allow-list")
        # Made anew for each file, so that nothing a pickle does to such a class outlives the reading.
        if symbol not in self._stand_ins:
            self._stand_ins[symbol] = type("StandIn", (StandIn,), {"symbol": symbol})
        return self._stand_ins[symbol]

    def persistent_load(self, pid: Any) -> Any:
        # PyTorch: ("storage", storage class, entry name, device, number of elements).
        return pid

    def get_extension(self, code: int) -> None:
        # The original gives, unasked, what another unpickler has imported for this code.
        raise pickle.UnpicklingError(f"extension code {code}, expected none")

    def load_bytearray8(self) -> None:
        # The original makes room for as many bytes as are declared; `read` gives no more than there are.
        size = int.from_bytes(self.read(8), "little")
        self.append(bytearray(self.read(size)))

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8

    def load_long4(self) -> None:
        raise pickle.UnpicklingError("a number of more than 255 bytes")

    dispatch[pickle.LONG4[0]] = load_long4
