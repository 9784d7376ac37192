"""Ids of every type and Unicode form that tables, file names and JSON have them in."""

import decimal
import io
import json
import unicodedata

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest

from viavsp_jax.data.ids import Files, column_of_ids, id_text, read_channels
from viavsp_jax.prepare.parquet import read_parquet
from viavsp_jax.runtime.errors import InputError

NFC, NFD = "tiếng Việt", unicodedata.normalize("NFD", "tiếng Việt")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("007", "007"), ("1.0", "1.0"), (NFD, NFC), ("", ""), (7, "7"), (np.int32(7), "7"), (2**70, str(2**70)),
        (7.0, "7"), (-0.0, "0"), (np.float32(7), "7"), (decimal.Decimal("7.00"), "7"), (2.0**53 - 1, str(2**53 - 1)),
        # Other numbers are the same float.
        (2.0**53, ""), (np.float32(2**24), ""), (float("inf"), ""),
        (None, ""), (float("nan"), ""), (pd.NA, ""), (pd.NaT, ""), (1.5, ""), (decimal.Decimal("NaN"), ""),
        (True, ""), (np.bool_(True), ""), ([1], ""), (b"7", ""),
    ],
)  # fmt: skip
def test_one_text_for_every_id(value, text):
    assert id_text(value) == text


@pytest.mark.parametrize(
    ("column", "texts"),
    [
        (pyarrow.array([1, None, 2**60 + 1]), ["1", "", str(2**60 + 1)]),
        (pyarrow.array([1, None], pyarrow.uint8()), ["1", ""]),
        (pyarrow.array([1.0, None, 2.0**53, 1.5]), ["1", "", "", ""]),
        (pyarrow.array([1.0, None, 2.0**24], pyarrow.float32()), ["1", "", ""]),
        (pyarrow.array([decimal.Decimal("1.00"), None]), ["1", ""]),
        (pyarrow.array([NFD, None, NFC]), [NFC, "", NFC]),
        (pyarrow.array([NFD, None], pyarrow.large_string()), [NFC, ""]),
        (pyarrow.array([NFD.encode(), None, b"7"]), [NFC, "", "7"]),
        (pyarrow.array(["a", None, "a"]).dictionary_encode(), ["a", "", "a"]),
        (pyarrow.array([7, None, 8]).dictionary_encode(), ["7", "", "8"]),
        (pyarrow.array([True, False]), ["", ""]),
        (pyarrow.array([[1], [2]]), ["", ""]),
        (pyarrow.nulls(2), ["", ""]),
    ],
    ids=lambda value: str(getattr(value, "type", "")),
)
@pytest.mark.parametrize("rows_at_once", [1, 100])
def test_columns_of_parquet(column, texts, rows_at_once):
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"id": column, "n": column}), file, row_group_size=rows_at_once)
    assert read_parquet(file, ["id"], ["id"])["id"].tolist() == texts


def test_other_columns_stay_whole_numbers():
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"n": pyarrow.array([2**60 + 1, None])}), file)
    assert read_parquet(file, ["n"], ["id"])["n"].tolist() == [2**60 + 1, None]


@pytest.mark.parametrize(
    ("texts", "ids"),
    [
        (["1.0", "", "2.0"], ["1", "", "2"]),
        (["1.0", "2.0"], ["1.0", "2.0"]),  # names of files may be so
        (["1.0", "", "a"], ["1.0", "", "a"]),
        (["9007199254740992.0", ""], ["9007199254740992.0", ""]),
        (["007", "", NFD], ["007", "", NFC]),
        ([], []),
    ],
)
def test_columns_of_text(texts, ids):
    assert column_of_ids(texts) == ids


ROWS = [{"id": 1, "channel": 5}, {"channel": "b"}, {"id": NFD, "channel": NFD}, {"id": "3", "channel": None}]


@pytest.mark.parametrize("form", ["rows", "records", "columns", "lists"])
def test_channels_by_id(tmp_path, form):
    table = pd.DataFrame(ROWS)
    written = {
        "rows": json.dumps(ROWS),
        "records": table.to_json(orient="records"),  # with 1.0 and 5.0
        "columns": table.to_json(),
        "lists": json.dumps({name: [row.get(name) for row in ROWS] for name in ("id", "channel")}),
    }[form]
    (tmp_path / "mapping.json").write_text(written)
    assert read_channels(tmp_path / "mapping.json") == {"1": "5", NFC: NFC}
    assert read_channels("") == {}


@pytest.mark.parametrize("content", ["[1, 2]", '[{"id": 1, "channel": 2}, 3]', "null", '"text"', '{"id": 1}', "{}"])
def test_other_json_has_no_channels(tmp_path, content):
    (tmp_path / "mapping.json").write_text(content)
    with pytest.raises(InputError, match="mapping.json: has columns .*, expected id and channel among them"):
        read_channels(tmp_path / "mapping.json")


@pytest.mark.parametrize("folder", [NFC, NFD])
@pytest.mark.parametrize("name", [NFC, NFD])
def test_files_are_found_in_every_form(tmp_path, folder, name):
    path = f"{folder}/{name}.mp4"
    (tmp_path / folder).mkdir()
    (tmp_path / path).touch()
    (tmp_path / folder / f"{NFC}.wav").mkdir()
    (tmp_path / unicodedata.normalize("NFD" if folder == NFC else "NFC", folder)).mkdir()  # an empty one beside it
    files = Files(tmp_path)
    for form in (NFC, NFD):
        assert files.find(f"{form}/{form}.mp4") == path
        assert files.find(f"{form}/{form}.wav") is None  # a folder
        assert files.find(f"{form}/other.mp4") is None
    assert files.find("nowhere/x.mp4") is None
