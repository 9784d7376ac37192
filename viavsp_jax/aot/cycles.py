"""How long a compiled program would take on a TPU, by the estimates that the TPU's compiler writes into it.

Every fused operation carries `estimated_cycles`, which the compiler chose its tiles by. Added up over the trips of
loops, with the dearest branch of each conditional, they are a profile of a chip that is not at hand. What carries no
estimate is counted apart:

- Pallas kernels by `kernels.seconds`;
- collectives by their bytes (twice for an all-reduce) over the chip's links, `send` over the network between slices;
- copies in the background, and all else, by memory alone: each body of a loop takes at least the bytes that it reads
  from and writes to the chip's large memory over the memory's bandwidth. What that is more than the rest is "memory".

Nothing is said of how much of the collectives runs beside other work: they count in full.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

from viavsp_jax.aot.collectives import bytes_by_kind
from viavsp_jax.aot.hlo import Computation, Instruction, Program
from viavsp_jax.aot.topology import Chip

# What time is spent on.
KINDS = {
    "products": "frozen products",
    "adapters": "adapters",
    "attention": "attention kernel",
    "head": "head and loss",
    "elementwise": "norms, rotation, activation",
    "dropout": "dropout",
    "saved": "slices of stacked arrays",
    "copies": "copies and layouts",
    "encoder": "encoder",
    "collectives": "collectives",
    "memory": "waiting for memory",
    "rest": "rest",
}
# By the file and, where there is one, the function of the source; the first that fits.
_PLACES = (
    ("losses", "", "head"),
    ("llama", "Llama.logits", "head"),
    ("lora", "LoRA", "adapters"),
    ("lora", "", "products"),
    ("nf4", "", "products"),
    ("int8", "", "products"),
    ("dropout", "", "dropout"),
    ("attention", "", "attention"),
    ("attention_tpu", "", "attention"),
    ("cache", "attend", "attention"),
    ("rope", "", "elementwise"),
    ("norm", "", "elementwise"),
    ("activation", "", "elementwise"),
    ("llama", "", "elementwise"),
)
_PRODUCTS = ("convolution", "dot")
_MOVES = {"copy", "transpose", "reshape", "bitcast", "slice", "pad", "concatenate", "parameter", "constant", "tuple",
          "get-tuple-element", "fusion", "dynamic-slice", "dynamic-update-slice", "convert", "broadcast"}  # fmt: skip
_SLICES = ("dynamic-slice", "dynamic-update-slice")
_NO_WORK = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id",
            "replica-id", "while", "conditional", "call", "async-update"}  # fmt: skip
_ENDLESS = 1 << 62  # what the compiler writes where it has no estimate
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


@dataclasses.dataclass
class Line:
    """One instruction, over all of its runs."""

    seconds: float
    runs: int
    kind: str
    name: str
    result: str  # its shape
    source: str  # file and line

    def report(self) -> dict[str, str | float]:
        """For the report; shapes without their layouts."""
        return {
            "ms": 1e3 * self.seconds, "runs": self.runs, "kind": self.kind,
            "result": re.sub(r"\{[^}]*\}|/\*.*?\*/", "", self.result), "source": self.source, "name": self.name,
        }  # fmt: skip


@dataclasses.dataclass
class Estimate:
    """Of one run of a program on one device."""

    seconds: collections.Counter[str]  # by kind
    lines: list[Line]  # of which most is spent on first


def estimate(program: Program, chip: Chip, kernels: dict[str, float], steps: int = 1) -> Estimate:
    """Adds up the compiler's estimates; `kernels` are seconds of a call by name.

    Loops count as often as they run, those whose end depends on data `steps` times, of branches the dearest.
    """

    def visit(name: str, runs: int) -> Estimate:
        """Of all runs of a computation, without what is sent."""
        computation = program.computations[name]
        own, moved, lines, parts = collections.Counter(), 0, [], []
        for one in computation.values():
            if one.opcode == "while":
                parts.append(visit(one.attribute("body"), runs * program.trips(one, steps)))
            elif one.opcode == "conditional":
                parts.append(max((visit(branch, runs) for branch in one.called), key=lambda part: part.seconds.total()))
            elif one.opcode == "call":
                parts.append(visit(one.called[0], runs))
            else:
                moved += memory_bytes(one, computation, program)
                if spent := runs * _seconds(one, chip, kernels):
                    kind = kind_of(one, computation, program)
                    own[kind] += spent
                    lines.append(Line(spent, runs, kind, one.name, one.result, _source(one, program)))
        own["memory"] += max(0.0, runs * moved / chip.hbm_bandwidth - own.total())
        return Estimate(sum((part.seconds for part in parts), own), sum((part.lines for part in parts), lines))

    whole = visit(program.entry, 1)
    for kind, size in bytes_by_kind(program, steps).items():
        bandwidth = chip.network_bandwidth if kind == "send" else chip.link_bandwidth
        whole.seconds["collectives"] += (2 if kind == "all-reduce" else 1) * size / bandwidth
    return Estimate(whole.seconds, sorted(whole.lines, key=lambda line: -line.seconds))


def _seconds(one: Instruction, chip: Chip, kernels: dict[str, float]) -> float:
    """Of one run, by the compiler or, of a kernel, by our count; 0 without an estimate."""
    if (found := _CYCLES.search(one.rest)) and int(found[1]) < _ENDLESS:
        return int(found[1]) / chip.clock
    if one.attribute("custom_call_target") == "tpu_custom_call":
        # The longest name that fits: one kernel's name may begin with another's.
        names = [name for name in kernels if re.match(rf"{re.escape(name)}(\.|$)", one.name) or f"/{name}" in one.rest]
        return kernels[max(names, key=len)] if names else 0.0
    return 0.0


def memory_bytes(one: Instruction, computation: Computation, program: Program) -> int:
    """What an instruction reads from and writes to the chip's large memory.

    Of an array from which a slice is taken, or into which one is put, the slice counts. What is copied in the
    background counts where the copy starts.
    """
    if one.opcode in _NO_WORK or one.opcode.endswith("-done"):
        return 0
    if one.opcode in ("copy-start", "slice-start", "async-start"):
        return _started(one)
    if one.opcode == "fusion":
        body = program.computations[one.called[0]]
        parameters = {p.rest.split(")")[0]: p for p in body.values() if p.opcode == "parameter"}
        read = sum(
            _read(parameters[str(place)], body, program)
            for place, operand in enumerate(one.operands)
            if any(array.space == 0 for array in computation[operand].arrays)
        )
        # Several results of one root, as of a reduction of two arrays at once, lie in one place.
        written = zip(one.arrays, _roots(body), strict=False)
        return read + sum(_written(root, body, program) for array, root in written if array.space == 0)
    if one.opcode in _SLICES:
        moved = computation[one.operands[1]] if one.opcode == "dynamic-update-slice" else one
        return 2 * _size(moved)
    return _size(one) + sum(_size(computation[operand]) for operand in one.operands)


def _size(one: Instruction) -> int:
    """Bytes of what comes out in the large memory."""
    return sum(array.bytes for array in one.arrays if array.space == 0)


def _started(one: Instruction) -> int:
    """Bytes that a copy in the background moves: as many as reach their place, once for each end in the large memory.

    Its result names the source, the target and a flag.
    """
    arrays = [array for array in one.arrays if array.elements > 1]
    if len(arrays) < 2:
        return 0
    moved, ends = min(array.bytes for array in arrays), {array.space for array in arrays}
    return moved * (2 if ends == {0} else 1 if 0 in ends else 0)


def _roots(body: Computation) -> list[Instruction]:
    root = next(one for one in body.values() if one.is_root)
    return [body[name] for name in root.operands] if root.opcode == "tuple" else [root]


def _read(source: Instruction, body: Computation, program: Program) -> int:
    """Bytes that a fused computation takes of one of its parameters."""
    (array, *others) = source.arrays
    if others:
        return sum(array.bytes for array in source.arrays)
    return _taken(source, body, program) * array.bytes // max(array.elements, 1)


def _taken(source: Instruction, body: Computation, program: Program) -> int:
    """Elements of an instruction's result that a fused computation computes with."""
    whole, taken = source.arrays[0].elements, 0
    for one in body.values():
        if source.name not in one.operands or one.opcode == "parameter":
            continue
        if one.opcode in ("dynamic-slice", "slice", "gather"):
            taken += one.arrays[0].elements
            continue
        if one.opcode == "dynamic-update-slice" and one.operands[0] == source.name:
            continue  # stays where it is
        here = whole
        if one.opcode == "fusion":
            inner = program.computations[one.called[0]]
            place = str(one.operands.index(source.name))
            parameter = next(p for p in inner.values() if p.opcode == "parameter" and p.rest.split(")")[0] == place)
            here = _taken(parameter, inner, program)
        # What is passed on in another form alone is taken by those that get it.
        if here == whole and one.arrays[0].elements == whole and not one.is_root:
            here = _taken(one, body, program)
        taken += here
    return min(whole, taken)


def _written(root: Instruction, body: Computation, program: Program) -> int:
    """Bytes of a fused computation's result that are new."""
    if root.opcode == "bitcast" and body[root.operands[0]].opcode != "parameter":
        return _written(body[root.operands[0]], body, program)
    if root.opcode == "dynamic-update-slice":
        return sum(array.bytes for array in body[root.operands[1]].arrays)
    if root.opcode == "fusion":
        inner = program.computations[root.called[0]]
        return sum(_written(one, inner, program) for one in _roots(inner))
    return sum(array.bytes for array in root.arrays)


def kind_of(one: Instruction, computation: Computation, program: Program) -> str:
    """What an instruction's time is spent on: of several things fused into one, the largest product, else the last."""
    inside = list(_inside(one, computation, program))
    products = [(product, body) for product, body in inside if product.opcode in _PRODUCTS]
    if products:
        largest, _ = max(products, key=lambda pair: _operations(*pair))
        return _place(largest, program) or _place(one, program) or "rest"
    opcodes = {inner.opcode for inner, _ in inside}
    if opcodes <= _MOVES:
        return "saved" if opcodes & {*_SLICES} else "copies"
    if "dynamic_update_index_in_dim" in one.rest or "dynamic_index_in_dim" in one.rest:
        return "saved"
    return _place(one, program) or "rest"


def _inside(one: Instruction, computation: Computation, program: Program) -> Iterator[tuple[Instruction, Computation]]:
    """An instruction and all that is fused into it, each with the computation that it stands in."""
    yield one, computation
    if one.opcode == "fusion":
        body = program.computations[one.called[0]]
        for inner in body.values():
            yield from _inside(inner, body, program)


def _operations(product: Instruction, body: Computation) -> float:
    """Of a product of matrices [M, K] and [K, N], M·K·N, which is √(MK · KN · MN)."""
    sizes = [body[name].arrays[0].elements for name in product.operands] + [product.arrays[0].elements]
    return math.sqrt(math.prod(sizes))


def _place(one: Instruction, program: Program) -> str | None:
    """The kind of the innermost place of the source that has one."""
    for frame in program.frames(one):
        if "avhubert" in frame.file:
            return "encoder"
        for file, function, kind in _PLACES:
            if frame.file.endswith(f"models/{file}.py") or frame.file.endswith(f"viavsp_jax/{file}.py"):
                if frame.function.startswith(function):
                    return kind
    return None


def _source(one: Instruction, program: Program) -> str:
    """The innermost line of this project that an instruction comes from."""
    frames = program.frames(one)
    own = next((frame for frame in frames if "/viavsp_jax/" in frame.file), frames[0] if frames else None)
    return f"{own.file.split('/viavsp_jax/')[-1]}:{own.line}" if own else ""
