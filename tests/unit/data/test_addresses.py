import tarfile

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from viavsp_jax.data import addresses, cells
from viavsp_jax.runtime.errors import InputError


def test_a_file_is_its_own_address(tmp_path):
    for name in ("a.mp4", "x.tar#a@1+2", "x.parquet#a@1"):  # the last two look like others, and are files
        (tmp_path / name).write_bytes(name.encode())
        address = str(tmp_path / name)
        assert addresses.exists(address) and addresses.file_of(address) == address
        assert addresses.read_bytes(address) == name.encode()
    with pytest.raises(InputError, match="nowhere: no such file"):
        addresses.read_bytes(tmp_path / "nowhere")


def test_a_member_of_an_archive(tmp_path):
    contents = {"a#b@1+2.video": b"one", "tiếng Việt/b.video": b"two" * 1000}
    path = tmp_path / "some #1.tar"
    with tarfile.open(path, "w") as archive:
        for name, content in contents.items():
            (tmp_path / "member").write_bytes(content)
            archive.add(tmp_path / "member", name)
    with tarfile.open(path) as archive:
        found = {
            member.name: addresses.in_tar(str(path), member.name, member.offset_data, member.size) for member in archive
        }
    assert {name: addresses.read_bytes(address) for name, address in found.items()} == contents
    assert {addresses.file_of(address) for address in found.values()} == {str(path)}
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InputError, match="b.video@.*: the archive ends after .* of 3000 bytes"):
        addresses.read_bytes(found["tiếng Việt/b.video"])


@pytest.mark.parametrize("kind", ["parquet", "arrow stream", "arrow file"])
def test_a_cell_of_a_table(tmp_path, kind):
    values = [None if row == 4 else bytes([row] * row) for row in range(10)]
    structs = [{"bytes": value, "path": str(row)} for row, value in enumerate(values)]
    table = pyarrow.table({"plain": values, "video": structs})
    path = str(tmp_path / f"t.{kind.split()[0]}")
    if kind == "parquet":
        pyarrow.parquet.write_table(table, path, row_group_size=3)
    else:
        new = pyarrow.ipc.new_stream if kind == "arrow stream" else pyarrow.ipc.new_file
        with new(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=3)
    for row in np.random.default_rng(0).permutation(10).tolist():
        for column in ("plain", "video.bytes"):
            address = addresses.in_table(path, column, row)
            if row == 4:
                with pytest.raises(InputError, match="@4: there are no bytes"):
                    addresses.read_bytes(address)
            else:
                assert addresses.read_bytes(address) == values[row]
    with pytest.raises(InputError, match="has 10 rows, expected one of number 10"):
        addresses.read_bytes(addresses.in_table(path, "plain", 10))
    with pytest.raises(InputError, match=r"t\.\w+: cannot be read .*other"):
        addresses.read_bytes(addresses.in_table(path, "other", 1))


def test_a_damaged_table_is_named(tmp_path):
    for name in ("a.parquet", "a.arrow"):
        (tmp_path / name).write_bytes(b"PAR1 not really")
        with pytest.raises(InputError, match=f"{name}: cannot be read"):
            cells.read_cell(str(tmp_path / name), "video", 0)
