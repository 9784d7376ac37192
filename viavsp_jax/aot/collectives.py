"""What a compiled program sends between devices, read from its text (HLO)."""

import collections
import math
import re
from typing import NamedTuple

# `send` is what leaves for another TPU slice.
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute",
         "collective-broadcast", "send")  # fmt: skip

_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.-]+) = (.*?) ([a-z][a-z0-9-]*)\((.*)")
_ARRAY = re.compile(r"\b[a-z]+(\d*)\w*\[([\d,]+)\]")  # bf16[8,128], pred[8], f8e4m3fn[4]
_CALLED = re.compile(r"\b(?:calls|to_apply|body|branch_computations)=(?:\{([^}]*)\}|%?([\w.-]+))")
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


class _Instruction(NamedTuple):
    name: str
    result: str  # its shape
    opcode: str
    rest: str  # operands and attributes
    is_root: bool

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.-]+)", self.rest.split(")")[0])

    def attribute(self, name: str) -> str | None:
        found = re.search(rf'\b{name}="?%?([\w.-]+)', self.rest)
        return found and found[1]


_Computation = dict[str, _Instruction]  # by name


def bytes_by_kind(text: str, steps: int = 1) -> dict[str, int]:
    """Bytes of each kind of collective on one device in one run of the program; kinds without any are left out.

    Of what goes in and what comes out the larger counts: the whole, for an all-gather and for a reduce-scatter. Loops
    count as often as they run, those whose end depends on data `steps` times, of branches each.
    """
    computations, entry = _parse(text)
    found: dict[tuple[str | None, ...], tuple[str, int]] = {}  # kind and bytes of each

    def visit(computation: str, times: int, place: str, fusion: str = "") -> None:
        instructions = computations[computation]
        for one in instructions.values():
            kind = one.opcode.removesuffix("-start")
            if kind in KINDS:
                chain = one.attribute("chain_id")
                # One that the TPU's compiler spreads over other work is there again in each piece of that work.
                key = (place, chain, one.attribute("channel_id")) if chain else (place, fusion, one.name)
                # And this is how it writes a reduce-scatter.
                kind = "reduce-scatter" if computation.startswith("all-reduce-scatter") else kind
                found[key] = kind, times * _size(one, instructions)
            elif one.opcode == "fusion":
                visit(_called(one)[0], times, place, one.name)
            elif one.opcode not in ("async-update", "async-done"):  # their start says the same
                trips = _trips(one, computations, steps) if one.opcode == "while" else 1
                for called in _called(one):
                    visit(called, times * trips, f"{place}/{one.name}")

    visit(entry, 1, "")
    total = collections.Counter()
    for kind, size in found.values():
        total[kind] += size
    return dict(total)


def _parse(text: str) -> tuple[dict[str, _Computation], str]:
    """Computations by name, and which one is the program."""
    computations, entry, current = {}, "", {}
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = computations[header[2]] = {}
            entry = header[2] if header[1] else entry
        elif found := _INSTRUCTION.match(line):
            root, name, *fields = found.groups()
            current[name] = _Instruction(name, *fields, is_root=bool(root))
    return computations, entry


def _called(instruction: _Instruction) -> list[str]:
    return [
        name.strip().lstrip("%")
        for several, one in _CALLED.findall(instruction.rest)
        for name in (several or one).split(",")
    ]


def _bytes(shape: str) -> int:
    """Of an array or a tuple, without single numbers, some of which are only flags."""
    return sum(
        math.prod(int(size) for size in sizes.split(",")) * int(bits or 8) // 8 for bits, sizes in _ARRAY.findall(shape)
    )


def _size(one: _Instruction, instructions: _Computation) -> int:
    """The larger of what goes in and what comes out; what only starts something gives back both."""
    given, result = sum(_bytes(instructions[name].result) for name in one.operands), _bytes(one.result)
    return max(given, result - given if one.opcode == "send" or one.opcode.endswith("-start") else result)


def _trips(loop: _Instruction, computations: dict[str, _Computation], steps: int) -> int:
    """What the compiler knows, else the constant that the loop's counter is compared with."""
    if known := _TRIP_COUNT.search(loop.rest):
        return int(known[1])
    condition = computations[loop.attribute("condition")]
    root = next(one for one in condition.values() if one.is_root)
    if root.opcode == "compare" and root.attribute("direction") == "LT":
        for name in root.operands:
            if condition[name].opcode == "constant":
                return int(condition[name].rest.split(")")[0])
    return steps
