"""What of a checkpoint's item may be missing or cut off: all that is let pass can be restored."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from viavsp_jax.checkpoint import Checkpoints
from viavsp_jax.integrity import check_arrays
from viavsp_jax.state import TrainState

# Parts of what the processes wrote that are of no use once it is put together, and notes that are not needed.
NOT_NEEDED = {"unlink": ("_sharding", "array_metadatas", "commit_success"), "cut": ("commit_success",)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A work folder, and what learns in it: an array in a file of its own, and small ones inside others."""
    folder = tmp_path_factory.mktemp("work")
    large = np.random.default_rng(0).normal(size=(60, 100)).astype(np.float32)
    tree = {"a": {"w": jnp.array(large)}, "b": jnp.zeros(3), "c": jnp.int32(4)}
    checkpoints = Checkpoints(folder, keep=1)
    checkpoints.save(TrainState(jnp.int32(1), tree, ()), None, "{}", {}, {}, {"accuracy": 0.5})
    checkpoints.close()
    return folder, tree


def shapes(tree):
    return [leaf.shape for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("damage", NOT_NEEDED)
def test_what_is_damaged_is_found(saved, tmp_path, damage):
    folder, tree = saved
    item = folder / "checkpoints" / "1" / "trainable"
    check_arrays(item, shapes(tree))
    let_pass = []
    for number, file in enumerate(path.relative_to(item) for path in sorted(item.rglob("*")) if path.is_file()):
        copy = shutil.copytree(item, tmp_path / str(number))
        content = (copy / file).read_bytes()
        (copy / file).unlink()
        if damage == "cut":
            (copy / file).write_bytes(content[: len(content) // 2])
        try:
            check_arrays(copy, shapes(tree))
            let_pass.append(str(file))
        except (ValueError, OSError):
            pass
    of_processes = [name for name in let_pass if name.startswith("ocdbt.process_0/")]
    assert len(of_processes) == len(list((item / "ocdbt.process_0" / "d").iterdir()))  # its manifest, and all but one
    assert all(name.startswith(NOT_NEEDED[damage]) for name in set(let_pass) - set(of_processes)), let_pass
    # All of these at once.
    for name in let_pass:
        file = tmp_path / "work" / "checkpoints" / "1" / "trainable" / name
        if not file.exists():
            shutil.copytree(folder, tmp_path / "work")
        file.unlink()
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
    restored = Checkpoints(tmp_path / "work").restore_trainable(1, abstract)
    jax.tree.map(np.testing.assert_array_equal, restored, tree)


def test_arrays_that_were_not_written(saved):
    folder, tree = saved
    item = folder / "checkpoints" / "1" / "trainable"
    for more in ((3,), (60, 101), ()):
        with pytest.raises(ValueError, match="1 of 4 arrays are missing"):
            check_arrays(item, [*shapes(tree), more])
