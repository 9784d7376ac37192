"""The command as a user meets it: one sentence for each mistake, and no traceback."""

import sys

import pytest
from absl import flags
from small_run import DEMO_LLAMA, make_shards

from viavsp_jax import main
from viavsp_jax.data import records

# Sizes of the demo's language model and small rows, given as a user would give them.
SMALL = (
    "--config.dtype=float32", "--config.data.feature_width=12", "--config.data.rows=2", "--config.updates=1",
    "--config.data.row.positions=128", "--config.data.row.frames=96", "--config.data.row.labels=40",
    "--config.mesh.data=1",
)  # fmt: skip


@pytest.fixture
def run_main(monkeypatch, tmp_path):
    """A function from arguments to the status that the command ends with."""

    def run(*arguments):
        command = ["main", "--config=configs/final.py", f"--workdir={tmp_path / 'work'}", *arguments]
        monkeypatch.setattr(sys, "argv", command)  # where the config's own overrides are read from
        flags.FLAGS.unparse_flags()
        for name in [name for name in flags.FLAGS if name.startswith("config.")]:
            delattr(flags.FLAGS, name)  # overrides of the run before, each defined as a flag of its own
        flags.FLAGS(command)
        with pytest.raises(SystemExit) as exit_:
            main.main(["main"])
        return exit_.value.code

    return run


@pytest.fixture
def error_of(capsys, run_main):
    """A function from arguments to the error that the command prints when it ends with status 2."""

    def run(*arguments):
        assert run_main(*arguments) == 2
        before, *errors = capsys.readouterr().err.split("error: ")
        assert len(errors) == 1 and "Traceback" not in before
        return errors[0]

    return run


def given(llm, shards):
    return (f"--config.llm.path={llm}", f"--config.data.path={shards}", *SMALL)


def test_check_ends_with_a_status_and_trains_nothing(run_main, capsys, tmp_path, folders):
    """1 for faults, of which all are listed; 0 where there are none."""
    arguments = ("--mode=check", *given(*folders), "--config.data.train=('av_clean', 'video_none')")
    assert run_main(*arguments, "--config.remat=some") == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "faults: 1. config.remat is 'some', expected none, elementwise or layers 2. " in shown
    assert "video_none: no such folder" in shown and "2 faults: training would not start" in shown
    assert run_main("--mode=check", *given(*folders), "--config.data.train=('av_clean',)") == 0
    assert capsys.readouterr().out.endswith("\nnothing is wrong\n")
    assert not (tmp_path / "work" / "checkpoints").exists()


def test_language_model_folder(error_of, tmp_path, folders):
    assert "config.llm.path is not set" in error_of(*given("", folders[1]))
    missing = tmp_path / "nowhere"
    assert f"{missing}/config.json does not exist" in error_of(*given(missing, folders[1]))
    assert "is not a converted language model" in error_of(*given(DEMO_LLAMA, folders[1]))


def test_settings_of_the_model(error_of, folders):
    arguments = given(*folders)
    message = error_of(*arguments, "--config.remat=some", "--config.data.row.window=0")
    assert message.startswith("2 things are wrong:\n  - config.remat is 'some', expected none, elementwise or layers\n")
    assert "\n  - config.data.row.window is 0, expected a whole number" in message


def test_shard_folder(error_of, tmp_path, folders):
    missing = tmp_path / "nowhere"
    assert f"{missing}: no such folder" in error_of(*given(folders[0], missing))
    (missing / "other").mkdir(parents=True)
    assert f"{missing}/av_clean: no such folder" in error_of(*given(folders[0], missing))


def test_step(error_of, folders):
    message = error_of(*given(*folders), "--mode=eval", "--step=newest")
    assert "--step is newest, expected best, latest or the number of an update" in message


def test_feature_width(error_of, tmp_path, folders):
    arguments = (*given(*folders), "--config.data.feature_width=1024")
    assert "av_clean holds features of width 12, but config.data.feature_width is 1024" in error_of(*arguments)


def test_label_longer_than_a_row(error_of, tmp_path, folders):
    message = error_of(*given(*folders), "--config.data.row.labels=5")
    assert "29 of 29 records do not fit a row: record train0_0 of av_clean (train) needs" in message
    assert "label tokens, a row holds 5" in message and "too_long.jsonl lists all of them" in message


def test_broken_record(error_of, tmp_path, folders):
    shards = tmp_path / "shards"
    make_shards(shards / "av_clean")
    path = records.shard_path(shards / "av_clean", "train", 0, 1)
    data = bytearray(path.read_bytes())
    # Damage the bytes in the middle of the file, where the records lie.
    data[len(data) // 2 : len(data) // 2 + 400] = bytes(range(200)) * 2
    path.write_bytes(bytes(data))
    message = error_of(*given(folders[0], shards))
    assert str(path) in message and "record" in message
