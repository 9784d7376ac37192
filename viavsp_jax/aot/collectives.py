"""What a compiled program sends between devices, read from its text (HLO)."""

import collections

from viavsp_jax.aot.hlo import Computation, Instruction, Program

# `send` is what leaves for another TPU slice.
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute",
         "collective-broadcast", "send")  # fmt: skip


def bytes_by_kind(program: Program, steps: int = 1) -> dict[str, int]:
    """Bytes of each kind of collective on one device in one run of the program; kinds without any are left out.

    Of what goes in and what comes out the larger counts: the whole, for an all-gather and for a reduce-scatter. Loops
    count as often as they run, those whose end depends on data `steps` times, of branches each.
    """
    found: dict[tuple[str | None, ...], tuple[str, int]] = {}  # kind and bytes of each

    def visit(computation: str, times: int, place: str, fusion: str = "") -> None:
        instructions = program.computations[computation]
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
                visit(one.called[0], times, place, one.name)
            elif one.opcode not in ("async-update", "async-done"):  # their start says the same
                trips = program.trips(one, steps) if one.opcode == "while" else 1
                for called in one.called:
                    visit(called, times * trips, f"{place}/{one.name}")

    visit(program.entry, 1, "")
    total = collections.Counter()
    for kind, size in found.values():
        total[kind] += size
    return dict(total)


def _bytes(instruction: Instruction) -> int:
    """Of an array or a tuple, without single numbers, some of which are only flags."""
    return sum(array.bytes for array in instruction.arrays if array.elements > 1)


def _size(one: Instruction, instructions: Computation) -> int:
    """The larger of what goes in and what comes out; what only starts something gives back both."""
    given, result = sum(_bytes(instructions[name]) for name in one.operands), _bytes(one)
    return max(given, result - given if one.opcode == "send" or one.opcode.endswith("-start") else result)
