"""A compiled program, read from its text (HLO): computations, instructions, sizes, and the source behind them."""

import dataclasses
import functools
import math
import re
from typing import NamedTuple

_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.-]+) = (.*?) ([a-z][a-z0-9-]*)\((.*)")
_ARRAY = re.compile(r"\b[a-z]+(\d*)\w*\[([\d,]*)\](?:\{[^}]*?(?:S\((\d+)\))?\})?")  # bf16[8,128]{1,0:T(8,128)S(1)}
_CALLED = re.compile(r"\b(?:calls|to_apply|body|branch_computations)=(?:\{([^}]*)\}|%?([\w.-]+))")
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_TABLE_ROW = re.compile(r'(\d+) (?:"(.*)"|\{(.*)\})')


class Array(NamedTuple):
    """A part of an instruction's result."""

    elements: int
    bytes: int
    space: int  # of memory: 0 is the chip's large one (HBM), others are fast ones on the chip


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    result: str  # its shape
    opcode: str
    rest: str  # operands and attributes
    is_root: bool

    @property
    def operands(self) -> list[str]:
        """Names of the instructions whose results go in."""
        return re.findall(r"%([\w.-]+)", self.rest.split(")")[0])

    @property
    def called(self) -> list[str]:
        """Names of the computations that it runs: fused ones, bodies, branches."""
        return [
            name.strip().lstrip("%")
            for several, one in _CALLED.findall(self.rest)
            for name in (several or one).split(",")
        ]

    @property
    def arrays(self) -> list[Array]:
        """What comes out: of a tuple, all of its parts."""
        found = []
        for bits, sizes, space in _ARRAY.findall(self.result):
            elements = math.prod(int(size) for size in sizes.split(",") if size)
            found.append(Array(elements, elements * int(bits or 8) // 8, int(space or 0)))
        return found

    def attribute(self, name: str) -> str | None:
        """The value of `name=value`."""
        found = re.search(rf'\b{name}="?%?([\w.-]+)', self.rest)
        return found and found[1]


Computation = dict[str, Instruction]  # by name


class Frame(NamedTuple):
    """A place in the source."""

    file: str
    line: int
    function: str  # with its class, as Llama.logits


@dataclasses.dataclass(frozen=True)
class Program:
    """All computations by name, and which one is run."""

    computations: dict[str, Computation]
    entry: str
    tables: dict[str, dict[int, str]]  # FileNames, FunctionNames, FileLocations, StackFrames: rows by number

    def trips(self, loop: Instruction, steps: int) -> int:
        """How often a `while` runs: as the compiler knows, else as its counter's limit says, else `steps`."""
        if known := _TRIP_COUNT.search(loop.rest):
            return int(known[1])
        condition = self.computations[loop.attribute("condition")]
        root = next(one for one in condition.values() if one.is_root)
        if root.opcode == "compare" and root.attribute("direction") == "LT":
            for name in root.operands:
                if condition[name].opcode == "constant":
                    return int(condition[name].rest.split(")")[0])
        return steps

    def frames(self, instruction: Instruction) -> list[Frame]:
        """Where it was written, innermost first; empty where the compiler made it up."""
        number = instruction.attribute("stack_frame_id")
        return [] if number is None else self._stack(int(number))

    @functools.cache  # noqa: B019  a program lives as long as its report
    def _stack(self, number: int) -> list[Frame]:
        frames = []
        while row := self.tables["StackFrames"].get(number):
            place = _fields(self.tables["FileLocations"][_fields(row)["file_location_id"]])
            frames.append(Frame(
                self.tables["FileNames"][place["file_name_id"]], place["line"],
                self.tables["FunctionNames"][place["function_name_id"]],
            ))  # fmt: skip
            number = _fields(row)["parent_frame_id"] - 1  # written one too high, as the first frame has itself for it
        return frames

    def __hash__(self) -> int:
        return id(self)


def parse(text: str) -> Program:
    """The text of `jax.stages.Compiled.as_text`, of an optimised and scheduled program."""
    computations: dict[str, Computation] = {}
    entry, name, current = "", "", {}
    tables: dict[str, dict[int, str]] = {}
    table: dict[int, str] = {}
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = computations[header[2]] = {}
            entry = header[2] if header[1] else entry
        elif found := _INSTRUCTION.match(line):
            root, name, *fields = found.groups()
            current[name] = Instruction(name, *fields, is_root=bool(root))
        elif line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
            table = tables[line] = {}
        elif row := _TABLE_ROW.fullmatch(line):
            table[int(row[1])] = row[2] if row[3] is None else row[3]
        elif current and line not in ("", "}"):  # attributes of the instruction before, which may have lines of theirs
            current[name] = current[name]._replace(rest=current[name].rest + line)
    return Program(computations, entry, tables)


def _fields(row: str) -> dict[str, int]:
    return {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", row)}
