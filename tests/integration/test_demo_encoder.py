"""The demo with a frozen and with a trained encoder: what it runs, and its table."""

import json

from configs import demo, demo_encoder
from scripts import demo_encoder as script


def test_every_seed_trains_both_encoders_and_shared_parts_are_made_once(tmp_path):
    names = [name for name, *_ in script.stages(tmp_path / "demo", tmp_path / "runs", [0, 7])]
    assert names == [*script.SHARED, "media", "frozen_0", "trained_0", "frozen_7", "trained_7"]
    commands = {name: commands for name, commands, _ in script.stages(tmp_path / "demo", tmp_path / "runs", [7])}
    for name, config in (("frozen_7", "demo"), ("trained_7", "demo_encoder")):
        for command, mode in zip(commands[name], ("train", "eval"), strict=True):
            assert {f"--config=configs/{config}.py", "--config.seed=7", f"--mode={mode}"} <= set(command)
    assert all("media" in command for command in commands["media"]) and "babble" in commands["media"][1]


def test_both_configs_see_as_many_clips_in_as_many_updates():
    frozen, trained = demo.get_config(), demo_encoder.get_config()
    for setting in ("updates", "optimizer", "evaluate", "lora"):
        assert frozen[setting] == trained[setting]
    assert frozen.data.rows == trained.data.rows and trained.encoder.train and not frozen.encoder.train
    assert 0 < trained.encoder.freeze_updates < trained.updates


def test_the_table_gives_mean_and_spread(tmp_path):
    for encoder, rates in (("frozen", (0.3, 0.2, 0.4)), ("trained", (0.1, 0.1, 0.25))):
        for seed, rate in enumerate(rates):
            folder = tmp_path / f"{encoder}_{seed}"
            folder.mkdir()
            (folder / "report.json").write_text(json.dumps({name: {"wer": rate} for name in script.demo.NAMES}))
    lines = script.table(tmp_path, [0, 1, 2]).splitlines()
    assert len(lines) == 1 + len(script.demo.NAMES) and "av_babble_0db" in lines[-1]
    assert all("30.0 (20.0 to 40.0)" in line and "15.0 (10.0 to 25.0)" in line for line in lines[1:])
