"""Text is UTF-8 and commands end well, whatever the locale, whatever bytes a name has."""

import ast
import os
import shutil
import subprocess
import sys

import pytest
from places import ROOT

from viavsp_jax.runtime.errors import InputError, reported_to_user

SOURCES = [
    path
    for name in ("viavsp_jax", "convert", "scripts", "benchmarks", "configs")
    for path in ROOT.glob(f"{name}/**/*.py")
]
OTHER_OPENS = {"context", "av", "wave", "tensorstore", "KvStore", "Image"}  # whose `open` is not of text


def without_encoding(path):
    """Line numbers of calls that read or write text in the encoding of the locale."""
    for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(call, ast.Call):
            continue
        keywords = {keyword.arg: keyword.value for keyword in call.keywords}
        method = isinstance(call.func, ast.Attribute)
        name = call.func.attr if method else getattr(call.func, "id", "")
        owner = getattr(call.func.value, "id", getattr(call.func.value, "attr", "")) if method else ""
        if name in ("open", "fdopen") and owner not in OTHER_OPENS and (name, owner) != ("open", "os"):
            modes = [*call.args[0 if method and name == "open" else 1 :], keywords.get("mode")]
            strings = [mode.value for mode in modes if isinstance(mode, ast.Constant) and isinstance(mode.value, str)]
            text = not any("b" in mode for mode in strings)
        else:
            text = name in ("read_text", "write_text") or "text" in keywords and owner == "subprocess"
        if text and "encoding" not in keywords:
            yield call.lineno


def test_every_text_file_is_utf_8():
    assert len(SOURCES) > 100
    assert [f"{path.relative_to(ROOT)}:{line}" for path in SOURCES for line in without_encoding(path)] == []


def test_every_command_passes_through_one_place():
    commands = [path for path in SOURCES if '__name__ == "__main__"' in path.read_text(encoding="utf-8")]
    assert len(commands) > 20
    for path in commands:
        text = path.read_text(encoding="utf-8")
        assert "@reported_to_user()\ndef main(" in text or "    with reported_to_user():" in text, path


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "JAX_PLATFORMS": "cpu"}
IN_ASCII = """
import sys
from convert import to_hf
from viavsp_jax.runtime.errors import reported_to_user
from viavsp_jax.main import app as absl, main

assert sys.stdout.encoding.lower() != "utf-8", sys.stdout.encoding
workdir, llm, output = sys.argv[1:]
sys.argv = ["to_hf", "--workdir", workdir, "--llm", llm, "--output", output]
to_hf.main()
print("m\\u1ed9t \\u2192 hai", "\\udcff")
sys.argv = ["main", "--helpfull"]
with reported_to_user():
    absl.run(main)
"""


def test_a_terminal_of_ascii(trained, llm, export, tmp_path):
    """An export holds the same there, and what cannot be shown is escaped."""
    shutil.copytree(trained[0], tmp_path / "work")  # names in ASCII, as such a locale wants them
    shutil.copytree(llm, tmp_path / "llm")
    folders = (str(tmp_path / name) for name in ("work", "llm", "hf"))
    command = [sys.executable, "-c", IN_ASCII, *folders]
    done = subprocess.run(
        command,
        env=os.environ | ASCII | {"PYTHONPATH": f"{ROOT}:" + os.environ["PYTHONPATH"]},
        cwd=ROOT,
        capture_output=True,
    )
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    shown = done.stdout.decode("ascii")
    assert r"m\u1ed9t \u2192 hai \udcff" in shown and "--workdir" in shown
    for name in ("config.json", "tokenizer.json", "configuration_viavsp.py"):
        assert (tmp_path / "hf" / name).read_bytes() == (export / name).read_bytes()


def test_names_that_cannot_be_are_one_sentence(tmp_path, capsys):
    for wrong, message in (
        (lambda: (tmp_path / "ữ").write_text("\udcff", encoding="utf-8"), "holds bytes that are not UTF-8"),
        (lambda: "ữ.mp4".encode("latin-1"), "whose encoding is latin-1: expected one of UTF-8"),
    ):
        with pytest.raises(SystemExit) as status, reported_to_user():
            wrong()
        error = capsys.readouterr().err
        assert status.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1 and message in error


def test_messages_with_such_names_are_shown(capsys):
    with pytest.raises(SystemExit), reported_to_user():
        print("\udcff")
        raise InputError("\udcff.mp4: no such file")
    assert "\\udcff" in capsys.readouterr().err
