"""scripts/demo.py: its commands are commands of this project, and a stopped demo continues. In full it runs by hand."""

import functools
import importlib
import sys

import pytest

from configs.demo import get_config
from scripts import demo
from viavsp_jax.evaluation.report.page import make_report, write_report
from viavsp_jax.evaluation.report.results import last_folder


def config_of(name):
    """The setting of this name; an error if there is none."""
    return functools.reduce(getattr, name.split("."), get_config())


def test_every_command_is_understood(tmp_path, monkeypatch, capsys):
    commands = [command for _, stage in demo.stages(tmp_path) for command in stage]
    assert len(commands) == 16 and all(command[0] == "-m" for command in commands)
    for _, module, *arguments in commands:
        if module == "viavsp_jax.main":  # its parser is absl's, which is one for the process
            for flag in arguments:
                if flag.startswith("--config."):
                    config_of(flag.removeprefix("--config.").partition("=")[0])
            continue
        name = f"{module}.__main__" if module == "viavsp_jax.prepare" else module
        # All but this one is understood: it is only complained of when nothing else is wrong.
        given = [*arguments, "--nonsense"]
        monkeypatch.setattr(sys, "argv", [module, *given])
        main = importlib.import_module(name).main
        with pytest.raises(SystemExit):
            main(given) if module == "viavsp_jax.prepare" else main()
        assert "unrecognized arguments: --nonsense" in capsys.readouterr().err, arguments


def test_a_stage_that_finished_is_not_run_again(tmp_path, capfd):
    done, count = tmp_path / "stages" / "one", tmp_path / "count"
    append = ["-c", f"open({str(count)!r}, 'a').write('x')"]
    fail = ["-c", "raise SystemExit(3)"]
    with pytest.raises(SystemExit, match=r"the stage one failed \(exit status 3\); call the demo again to continue"):
        demo.run_stage("one", [append, fail, append], done)
    assert count.read_text() == "x" and not done.exists()
    seconds = demo.run_stage("one", [append, append], done)
    assert count.read_text() == "xxx" and done.exists()
    assert demo.run_stage("one", [fail], done) == seconds == demo.recorded(done, 99.0)
    assert "== one: python -c" in capfd.readouterr().out


def test_after_ctrl_c_a_stage_has_the_time_to_save(tmp_path):
    """The terminal sends it to both; here the command passes it on."""
    save = "import os, signal, time; os.kill(os.getppid(), signal.SIGINT); time.sleep(1); open(%r, 'w').write('x')"
    with pytest.raises(SystemExit) as caught:
        demo.run_stage(
            "one", [["-c", save % str(tmp_path / "saved")], ["-c", "raise SystemExit(3)"]], tmp_path / "done"
        )
    assert caught.value.code == 130 and (tmp_path / "saved").exists() and not (tmp_path / "done").exists()


def test_agreement_is_the_share_of_equal_texts(tmp_path):
    head = "id\treference\thypothesis\tseconds\n"
    about, ours, theirs = {"checkpoint": 3, "split": "test"}, ("a", "", "c", "null"), ("a", "", "b", "null")
    rows = [{"id": str(number), "reference": "r", "hypothesis": text} for number, text in enumerate(ours)]
    write_report(tmp_path, make_report(about, dict.fromkeys(demo.NAMES, rows), {}))
    for name in demo.NAMES:
        for folder, texts in ((last_folder(tmp_path), ours), (tmp_path / "huggingface" / "hypotheses", theirs)):
            folder.mkdir(parents=True, exist_ok=True)
            rows = "".join(f"{number}\tr\t{text}\t1.0\n" for number, text in enumerate(texts))
            (folder / f"{name}.tsv").write_text(head + rows)
    assert demo.agreement(tmp_path) == 0.75
