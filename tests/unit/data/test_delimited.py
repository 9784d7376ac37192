"""Tables of delimited text as spreadsheets and people write them."""

import csv
import io

import pandas as pd
import pytest

from viavsp_jax.data.delimited import read_delimited
from viavsp_jax.runtime.errors import InputError

ROWS = [
    {"id": "007", "transcript": 'xin chào, "bạn"; nhé', "split": "train"},
    {"id": "b", "transcript": "nan", "split": "test"},
    {"id": "", "transcript": "hai\ndòng", "split": "valid"},
]


def read(tmp_path, content, columns=("id", "split")):
    (tmp_path / "t.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_delimited(tmp_path / "t.csv", columns)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_whatever_wrote_it(tmp_path, delimiter, line_end, encoding):
    """A mark in front, as Excel sets it; UTF-16 with tabs is its text in Unicode."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(
        text, ["id", "transcript", "split"], delimiter=delimiter, lineterminator=line_end, quoting=csv.QUOTE_ALL
    )
    writer.writeheader()
    writer.writerows(ROWS)
    assert read(tmp_path, f"{line_end}{text.getvalue()}{line_end}{delimiter * 2}{line_end}".encode(encoding)) == ROWS


def test_as_pandas_reads_it(tmp_path):
    text = 'id,transcript,split\na,anh nói "chào" nhé,train\nb, có khoảng trắng ,test\n"c","""x""",valid'
    expected = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False).to_dict("records")
    assert read(tmp_path, text) == expected


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("id,transcript,split\na,b,train\nx,c,d,train", r"line 3 .*\(4, not 3\), expected texts with a comma"),
        ("id;transcript;split\na;b;c;train", r"line 2 .*\(4, not 3\), expected texts with a semicolon"),
        ("id,transcript,split\na,b", r"line 2 .*\(2, not 3\)"),
        ('id,transcript,split\na,"b\nc",train\nd,e', r"line 4 .*\(2, not 3\)"),
        ('id,transcript,split\na,"b"c,train', "line 2: not a table .*expected after"),
        ("id,id,split\na,b,train", r"columns \['id'\] are missing or there twice, .* found 'id, id, split'"),
        ("id, split\na,train", r"columns \['split'\] are missing"),
        ("a|b\n1|2", r"columns \['id', 'split'\] are missing .* found 'a|b'"),
        ("", r"columns \['id', 'split'\] are missing"),
        ("id,split\na,Tiếng\n".encode("cp1258", "replace") + b"\xea", "not UTF-8 text"),
        (b"\xff\xfei", "not UTF-16 text"),
    ],
)
def test_no_such_table(tmp_path, content, words):
    with pytest.raises(InputError, match=f"t.csv: {words}"):
        read(tmp_path, content)
