"""A quick round of the fuzzing of tests/stress/fuzz.py, and whether it would notice what it looks for."""

import os
import pathlib
import re
import subprocess
import time

import pytest

from tests.stress import fuzz
from tests.stress.fuzz_targets import TARGETS, Target

WHOLE = b"whole"


def test_damaged_files_are_read_or_refused():
    results = fuzz.fuzz(200, seed=0)
    assert not [failure for result in results for failure in result.failures]
    assert [result.target for result in results] == [target.name for target in TARGETS]
    for result in results:
        assert result.accepted + result.refused == result.inputs > 0
    # Event files end where they are damaged; any other reader has refused something.
    assert [result.target for result in results if not result.refused] == ["curves"]


def write(folder: pathlib.Path) -> None:
    (folder / "file.bin").write_bytes(WHOLE)


def abort(path: pathlib.Path) -> None:
    if path.read_bytes() != WHOLE:
        os.abort()


def sleep(path: pathlib.Path) -> None:
    if path.read_bytes() != WHOLE:
        time.sleep(60)


def eat(path: pathlib.Path) -> None:
    pile = []
    while path.read_bytes() != WHOLE:
        pile.append(b"x" * 2**22)


def raise_key_error(path: pathlib.Path) -> None:
    if path.read_bytes() != WHOLE:
        raise KeyError("of the reader")


def leave(path: pathlib.Path) -> None:
    if path.read_bytes() != WHOLE:
        os._exit(3)


def run_a_program(path: pathlib.Path) -> None:
    if path.read_bytes() != WHOLE:
        try:
            subprocess.run(["true"])
        except PermissionError:
            pass  # hides it


def look_elsewhere(path: pathlib.Path) -> None:
    if path.read_bytes() != WHOLE:
        (path.parent / "../../../../etc/passwd").read_bytes()


@pytest.mark.parametrize(
    ("read", "what"),
    [
        (abort, "died by SIGABRT"),
        (sleep, "took more than 0.3 s"),
        (eat, r"took \d+ MB, more than 64 MB"),
        (raise_key_error, r"raised KeyError: 'of the reader' \(test_fuzz.py:\d+\)"),
        (leave, "ended the process with status 3"),
        (run_a_program, "reached for subprocess.Popen"),
        (look_elsewhere, "raised PermissionError: the file /etc/passwd"),
    ],
)
def test_what_a_reader_must_not_do_is_a_failure(monkeypatch, read, what):
    if read is sleep:  # a busy machine may take so long over the others
        monkeypatch.setattr(fuzz, "SECONDS", 0.3)
    result = fuzz.run_target(Target("bad", write, read), range(3, 5), seed=0)
    assert [failure.case for failure in result.failures] == [3, 4], "after the first, it goes on"
    for failure in result.failures:
        assert re.match(what, failure.what), failure.what
    assert (result.inputs, result.accepted, result.refused) == (2, 0, 0)


def test_a_reader_that_reads_no_whole_file_is_no_target():
    with pytest.raises(RuntimeError, match="bad: its undamaged files are not read(.|\n)*KeyError"):
        fuzz.run_target(Target("bad", write, fail_always), range(1), seed=0)


def fail_always(path: pathlib.Path) -> None:
    raise KeyError(path)


@pytest.mark.parametrize("name", ["fairseq", "recording", "records"])
def test_a_case_is_always_the_same(tmp_path, name):
    (target,) = fuzz.chosen_targets([name])
    found = []
    for cases in (range(7), range(6, 7)):
        folder = tmp_path / str(len(found))
        folder.mkdir()
        fuzz.run_target(target, cases, seed=1, keep=str(folder))
        found.append({file.name: file.read_bytes() for file in folder.iterdir()})
    ((file, content),) = found[1].items()
    assert found[0][file] == content


def test_the_command_repeats_a_case(capsys):
    with pytest.raises(SystemExit) as ended:
        fuzz.main(["--target", "wav", "--case", "2"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0 and "the file is in" in shown and shown.splitlines()[-2].split()[:2] == ["wav", "1"]
    with pytest.raises(SystemExit) as ended:
        fuzz.main(["--target", "nothing"])
    assert ended.value.code == 2
