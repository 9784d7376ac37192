"""--config and --config.NAME as people mistype them: one sentence, with what may have been meant."""

import sys

import pytest
from absl import flags
from places import ROOT

from viavsp_jax import config_file, main
from viavsp_jax.runtime.errors import reported_to_user

DEMO = "--config=configs/demo.py"


@pytest.fixture
def parsed(monkeypatch):
    """A function from arguments to the config that they give."""

    def parse(*arguments):
        command = ["main", *arguments]
        monkeypatch.setattr(sys, "argv", command)  # where ml_collections reads the changes from
        monkeypatch.setattr(sys, "path", list(sys.path))
        flags.FLAGS.unparse_flags()
        for name in [name for name in flags.FLAGS if name.startswith("config.")]:
            delattr(flags.FLAGS, name)  # changes of the run before, each defined as a flag of its own
        with reported_to_user():
            config_file.parse(command)
        return main._CONFIG.value

    return parse


@pytest.mark.parametrize(("arguments", "message"), [
    (["--config=configs/fnal.py"], "--config is configs/fnal.py: no such file, did you mean configs/final.py?"),
    (["--config=nowhere.py"], "--config is nowhere.py: no such file, expected a file with get_config(), or one of "
     "base, demo, demo_encoder, final, llama32, qwen3, vicocktail\n"),
    (["--config="], "--config is : no such file, expected a file with get_config()"),
    (["--config=finl"], "--config is finl: no such file, did you mean final?"),
    (["--config=finale:reference"], "--config is finale:reference: no such file, did you mean final?"),
    (["--config=nowhere/qwen.py"], "--config is nowhere/qwen.py: no such file, did you mean qwen3?"),
    (["--config=configs/final.py:gpu"], "ValueError: variant 'gpu' of configs/final.py: expected tpu or reference"),
    (["--config=configs/demo.py:x"], "configs/demo.py:x: TypeError: get_config() takes 0 positional arguments but 1"),
    ([DEMO, "--config.optimizer.peaklr=1"], "config.optimizer.peaklr is no setting, did you mean config.optimizer."),
    ([DEMO, "--config.optimiser.eps=1"], "config.optimiser.eps is no setting, did you mean config.optimizer.eps?"),
    ([DEMO, "--noconfig.encoder.trian"], "config.encoder.trian is no setting, did you mean config.encoder.train?"),
    ([DEMO, "--config.updates.x=1"], "config.updates.x is no setting, did you mean config.updates?"),
    ([DEMO, "--config.qqqqqqqqq=1"], "config.qqqqqqqqq is no setting, configs/base.py lists all there are"),
    ([DEMO, "--config.updates=many"], "flag --config.updates=many: invalid literal for int()"),
    ([DEMO, "--config.data=5"], "flag --config.data=5: Failed to parse '5' as a ConfigDict"),
    ([DEMO, "--mode=trian"], "flag --mode=trian: value should be one of <train|calibrate|eval|check|compile|describe>"),
    ([DEMO, "--wrokdir=x"], "Unknown command line flag 'wrokdir'. Did you mean: workdir"),
    ([DEMO, "--config.evaluate.names=('av_clean',)", "--config.evaluate.names=()"],
     "--config.evaluate.names is given as ('av_clean',) and as (), expected one tuple"),
    (["--config.updates=1", "--mode=train"], "--config is not set, expected a file whose settings --config.NAME"),
])  # fmt: skip
def test_a_mistake_ends_with_a_sentence(parsed, capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        parsed(*arguments)
    shown = capsys.readouterr().err
    assert caught.value.code == 2 and shown.startswith("error: ") and shown.count("\n") == 1 and message in shown


def test_a_full_path_from_another_folder(parsed, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert parsed(f"--config={ROOT / 'configs' / 'final.py'}:reference", "--config.seed=3").seed == 3


def test_ours_by_name_from_another_folder(parsed, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names = [file.stem for file in (ROOT / "configs").glob("[!_]*.py")]
    assert {"base", "demo", "final", "qwen3"} <= {*names}
    for name in names:
        found, expected = (parsed(f"--config={x}", "--config.seed=3") for x in (name, f"{ROOT}/configs/{name}.py"))
        assert found == expected and found.seed == 3
    assert parsed("--config=final:reference").updates == 300_000
    (tmp_path / "final").write_text("def get_config():\n    from configs import demo\n\n    return demo.get_config()\n")
    assert parsed("--config=final") == parsed("--config=demo"), "a file there is goes first"


def test_a_file_of_ones_own_that_builds_on_ours(parsed, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my: own.py").write_text(
        "from configs import base\n\n\ndef get_config():\n    config = base.get_config()\n"
        '    config.evaluate.decoding.early_stopping = "never"\n    return config\n'
    )
    assert parsed("--config=my: own.py").evaluate.decoding.early_stopping == "never"


@pytest.mark.parametrize(("text", "message"), [
    ("def get_config(:\n", "SyntaxError"),
    ("\nimport no_such_package\n", "own.py: line 2: ModuleNotFoundError: No module named 'no_such_package'"),
    ("x = 1\n", "own.py: AttributeError: module 'config_file' has no attribute 'get_config'"),
    ("def get_config():\n    return {'seed': 1}\n", "get_config() returns dict, expected an ml_collections.ConfigDict"),
    ("from configs import base\n\n\ndef get_config():\n    c = base.get_config()\n    c.updates = '5'\n    return c\n",
     "own.py: line 6: TypeError: "),
    ("raise SystemExit('no')", "own.py: line 1: SystemExit: no"),
])  # fmt: skip
def test_a_mistake_in_a_file_of_ones_own(parsed, capsys, tmp_path, text, message):
    (tmp_path / "own.py").write_text(text)
    with pytest.raises(SystemExit) as caught:
        parsed(f"--config={tmp_path / 'own.py'}")
    shown = capsys.readouterr().err
    assert caught.value.code == 2 and shown.startswith("error: ") and shown.count("\n") == 1 and message in shown


def test_values_of_a_tuple_one_by_one(parsed):
    found = parsed(
        DEMO, "--config.data.train=a_clean", "--config.data.train=b_clean", "--config.seed=1", "--config.seed=2"
    )
    assert found.data.train == ("a_clean", "b_clean") and found.seed == 2


@pytest.mark.parametrize("value", ["never", "True", "false"])
def test_early_stopping_from_the_command_line(parsed, value):
    found = parsed(DEMO, f"--config.evaluate.decoding.early_stopping={value}").evaluate.decoding.early_stopping
    assert found == {"never": "never", "True": True, "false": False}[value]
