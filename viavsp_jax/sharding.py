"""Mesh and sharding. The only file that knows the names of the mesh axes.

Axes: `data` (rows), `fsdp` (rows, and frozen weights cut along one width), `tensor` (weights cut along the other).
"""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from viavsp_jax.runtime.errors import InputError

AXES = ("data", "fsdp", "tensor")

# First match wins. Trainable weights are small and replicated, the encoder's too, of which every device needs
# all; and so is a width that its axis does not divide, such as VinaLLaMA's vocabulary of 46,306.
RULES = (
    (r"(^|/)(lora|projector|encoder|ctc)/", PartitionSpec()),
    (r"(^|/)(scale|bias)$", PartitionSpec()),
    (r"^llm/embedding$", PartitionSpec("tensor", "fsdp")),
    (r"^llm/head$", PartitionSpec("fsdp", "tensor")),
    (r"^llm/layers/(q|k|v|gate|up)/kernel(/codes)?$", PartitionSpec(None, "fsdp", "tensor")),
    (r"^llm/layers/(o|down)/kernel(/codes)?$", PartitionSpec(None, "tensor", "fsdp")),
    # NF4 keeps one scale for 64 inputs: too few to cut that width evenly on every mesh.
    (r"^llm/layers/(q|k|v|gate|up)/kernel/scales$", PartitionSpec(None, None, "tensor")),
    (r"^llm/layers/(o|down)/kernel/scales$", PartitionSpec(None, None, "fsdp")),
    (r"^llm/layers/\w+/kernel/(nested_scales|offset)$", PartitionSpec()),
)


@dataclasses.dataclass(frozen=True)
class MeshSettings:
    """Sizes of the axes, -1 for what the others leave; the fields of `config.mesh`."""

    data: int
    fsdp: int
    tensor: int


def make_mesh(settings: MeshSettings, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of these sizes, of all devices if none are given.

    Of several TPU slices each holds a part of the `data` axis, along which the least is sent.

    Raises InputError when the sizes do not fit the devices.
    """
    devices = jax.devices() if devices is None else devices
    asked = {axis: getattr(settings, axis) for axis in AXES}
    sizes = list(asked.values())
    count, given = len(devices), math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) > 1 or count % given or (-1 not in sizes and given != count):
        raise InputError(f"config.mesh asks for {asked}, which does not fit {count} devices")
    sizes = [count // given if size == -1 else size for size in sizes]
    types = (AxisType.Auto,) * len(AXES)
    slices = len({getattr(device, "slice_index", 0) for device in devices if device.platform == "tpu"})
    if slices <= 1:
        return jax.make_mesh(sizes, AXES, axis_types=types, devices=devices)
    if sizes[0] % slices:
        raise InputError(f"config.mesh.data is {sizes[0]}, expected a multiple of {slices}, the number of slices")
    inside, across = (sizes[0] // slices, *sizes[1:]), (slices, 1, 1)
    return Mesh(mesh_utils.create_hybrid_device_mesh(inside, across, devices), AXES, axis_types=types)


def shard_params(mesh: Mesh, params: Any) -> Any:
    """A tree of shardings for a tree of weights, by the first rule that matches each path.

    Raises KeyError for a path without a rule: a new weight needs a decision, not a default.
    """

    def one(path, weight):
        name = "/".join(str(entry.key) for entry in path)
        for pattern, spec in RULES:
            if re.search(pattern, name):
                cut = [axis and size % mesh.shape[axis] == 0 for axis, size in zip(spec, weight.shape, strict=False)]
                axes = (axis if even else None for axis, even in zip(spec, cut, strict=True))
                return NamedSharding(mesh, PartitionSpec(*axes))
        raise KeyError(f"no sharding rule for {name}")

    return jax.tree_util.tree_map_with_path(one, params)


def pieces(mesh: Mesh) -> int:
    """How many a batch is cut into; each device works on one of them, devices along `tensor` on the same."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def scattered(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """Cut among the devices that hold rows, along the first axis that they divide; whole where they divide none.

    For the moments of large weights that are replicated (ZeRO, arXiv:1910.02054): each device updates its
    part, and nothing more is sent, since a sum over devices is a scatter of sums and a gathering.
    """
    axis = next((axis for axis, size in enumerate(shape) if size % pieces(mesh) == 0), None)
    return NamedSharding(mesh, PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, ("data", "fsdp")))


def rows(mesh: Mesh) -> NamedSharding:
    """Cut along the first axis, the rows of a batch."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def heads(mesh: Mesh, count: int) -> NamedSharding:
    """Of [rows, positions, heads, width]: rows as in a batch, heads along `tensor` where it divides their `count`."""
    return NamedSharding(
        mesh, PartitionSpec(("data", "fsdp"), None, None if count % mesh.shape["tensor"] else "tensor")
    )


def cached(mesh: Mesh, count: int) -> NamedSharding:
    """Of keys and values that decoding keeps, [layers, rows, heads, places, width]: as `heads`."""
    batch, _, tensor = heads(mesh, count).spec
    return NamedSharding(mesh, PartitionSpec(None, batch, tensor))


def by_rows(mesh: Mesh, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of arrays with rows along the first axis and of single numbers, run on every device's own rows.

    For functions in which rows do not meet, where XLA does not see that; single numbers must come out equal everywhere.
    """

    def placed(tree):
        return jax.tree.map(lambda x: rows(mesh).spec if x.ndim else PartitionSpec(), tree)

    def run(*args):
        out_specs = placed(jax.eval_shape(function, *args))
        return jax.shard_map(function, mesh=mesh, in_specs=placed(args), out_specs=out_specs, check_vma=False)(*args)

    return run


def check_rows(mesh: Mesh, count: int, setting: str) -> None:
    """Raises InputError, naming the setting that gave it, when a batch of `count` rows cannot be cut as `rows` says."""
    if count % pieces(mesh):
        raise InputError(
            f"{setting} is {count}, expected a multiple of {pieces(mesh)}: the mesh {dict(mesh.shape)} cuts a batch "
            "into so many pieces"
        )


def whole_rows(mesh: Mesh, count: int) -> int:
    """The fewest rows that hold `count` and that the mesh can cut."""
    return -(-count // pieces(mesh)) * pieces(mesh)


def passes(mesh: Mesh, batch: dict[str, jax.Array], device_rows: int) -> dict[str, jax.Array]:
    """[B, …] → [N, B / N, …]: of every device's rows `device_rows` at a time. To be called in a jitted function."""
    count = pieces(mesh)

    def cut(x):
        x = x.reshape(count, -1, device_rows, *x.shape[1:])
        # Where N came to stand, no row leaves its device.
        x = x.swapaxes(0, 1).reshape(x.shape[1], -1, *x.shape[3:])
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(None, ("data", "fsdp"))))

    return {name: cut(x) for name, x in batch.items()}


def put_batch(mesh: Mesh, batch: dict[str, Any]) -> dict[str, jax.Array]:
    """Moves this process's rows to its devices; together the processes' rows are the global batch."""
    return {name: jax.make_array_from_process_local_data(rows(mesh), value) for name, value in batch.items()}


def put_whole_batch(mesh: Mesh, batch: dict[str, Any]) -> dict[str, jax.Array]:
    """Moves this process's part of a batch that every process holds in full to its devices."""
    return {
        name: jax.make_array_from_process_local_data(rows(mesh), value, value.shape) for name, value in batch.items()
    }


def with_sharding(abstract: Any, shardings: Any) -> Any:
    """Joins a tree of shapes with a tree of shardings, as a restore wants it."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)


def local_rows(mesh: Mesh, count: int) -> list[int]:
    """The rows of a batch of `count` that the devices of this process hold, in the order `put_batch` wants.

    Not a plain share: the order of the devices in the mesh decides, and processes that cut the weights of one row
    between them both hold that row. `count` has to fit the mesh, see `check_rows`.
    """
    slices = rows(mesh).addressable_devices_indices_map((count,)).values()
    return sorted({row for (piece,) in slices for row in range(count)[piece]})
