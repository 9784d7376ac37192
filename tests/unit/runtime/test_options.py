"""Bounds of options, and a sentence for what is out of them."""

import pytest

from viavsp_jax.runtime import options
from viavsp_jax.runtime.errors import InputError


def test_what_is_in_bounds_is_read():
    assert [options.whole("--n", 1, 3)(text) for text in ("1", "3")] == [1, 3]
    assert options.whole("--n", -2)("-2") == -2 and options.whole("--n", 0)(str(10**30)) == 10**30
    assert options.real("--x", above=0, at_most=1)("1") == 1.0 and options.real("--x", at_least=-1)("-1") == -1.0
    assert [options.checkpoint_step(text) for text in ("best", "latest", "0", "17")] == ["best", "latest", "0", "17"]


@pytest.mark.parametrize(
    "parse, texts, bounds",
    [
        (options.whole("--n", 1), ("0", "-1", "1.5", "x", "", "nan", "1e3"), "a whole number at least 1"),
        (options.whole("--n", 1, 3), ("0", "4"), "a whole number at least 1 and at most 3"),
        (options.real("--n", above=0, at_most=1), ("0", "-0.0", "1.1", "nan", "x"), "a number above 0 and at most 1"),
        (options.real("--n", at_least=-9), ("inf", "-inf", "1e999", "-9.1", ""), "a number at least -9"),
    ],
)
def test_what_is_out_of_bounds_is_one_sentence(parse, texts, bounds):
    for text in texts:
        with pytest.raises(InputError) as caught:
            parse(text)
        assert str(caught.value) == f"--n is {text}, expected {bounds}"


def test_steps_that_are_none():
    for text in ("foo", "-1", "1.0", "", "Best", "²"):
        with pytest.raises(InputError, match="expected best, latest or the number of an update"):
            options.checkpoint_step(text)


def test_paths_to_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    assert options.new_file("--output")(f"{tmp_path}/file") == f"{tmp_path}/file"
    assert options.new_folder("--output")(f"{tmp_path}/new/deep") == f"{tmp_path}/new/deep"
    with pytest.raises(InputError, match=r"^--output '.*/b\\udcff': holds bytes that are not UTF-8"):
        options.new_folder("--output")(f"{tmp_path}/b\udcff")
    assert options.new_file("--output")(f"{tmp_path}/b\udcff")
    for parse, path in ((options.new_folder, "file"), (options.new_file, "."), (options.new_file, "file/x")):
        with pytest.raises(InputError, match="^--output "):
            parse("--output")(f"{tmp_path}/{path}")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
