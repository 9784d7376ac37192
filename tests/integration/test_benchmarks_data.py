"""The benchmarks of dedup, loader, features and start-up, at sizes of seconds: sides agree, tables come out."""

import itertools
import json
import re
import time

import numpy as np
import pytest
import torch

from benchmarks import dedup, encoder, features, loader, media_clips, rounds, startup
from benchmarks.vasr_clips import FRAMES, draw_run_lengths
from viavsp_jax.data import media
from viavsp_jax.data.features import video_input
from viavsp_jax.models.avhubert.config import AVHubertConfig
from viavsp_jax.prepare.features.reading import read_media


def test_sides_run_in_turn_after_a_warm_up():
    calls = []

    def side(name: str, items: int):
        def work() -> int:
            calls.append(name)
            time.sleep(0.01)
            return items

        return work

    found = rounds.compare({"ours": side("ours", 6), "theirs": side("theirs", 2)}, 3, "a title")
    assert calls == ["ours", "theirs"] * 2 + ["theirs", "ours"] + ["ours", "theirs"]
    assert {name: len(rates) for name, rates in found.rates.items()} == {"ours": 3, "theirs": 3}
    assert all(rate <= 600 for rate in found.rates["ours"]) and all(rate <= 200 for rate in found.rates["theirs"])


def test_ratios_are_of_rates_round_by_round():
    found = rounds.Comparison("a title", "clips", {"ours": [6.0, 8.0, 5.0], "theirs": [2.0, 1.0, 5.0]})
    assert found.ratios() == {"theirs": [3.0, 8.0, 1.0]}
    title, head, ours, theirs = found.table().splitlines()
    assert title.startswith("a title (3 rounds") and "clips/s" in head
    assert "5–6–8" in ours and "1–2–5" in theirs and theirs.endswith(" 1–3–8")
    assert float(theirs.split()[2]) == 0.5, "seconds a clip"


def test_the_report_names_machine_versions_and_facts(tmp_path, capsys):
    found = rounds.Comparison("a title", "clips", {"ours": [6.0], "theirs": [2.0]})
    rounds.report([found], str(tmp_path / "out.json"), size_of_it="7 kB")
    shown, content = capsys.readouterr().out, json.loads((tmp_path / "out.json").read_text())
    assert content["comparisons"] == [found.as_json()] and found.as_json()["ratios"] == {"theirs": [3.0]}
    assert content["facts"] == {"size of it": "7 kB"} and "size of it: 7 kB" in shown
    assert f"torch {torch.__version__.split('+')[0]}" in content["machine"]["versions"]
    assert all(f"{name}: {value}" in shown for name, value in content["machine"].items())


def test_dedup(capsys):
    found = dedup.main(["--rows", "2", "--frames", "256", "--positions", "256", "--width", "8", "--rounds", "1"])
    assert len(found.rates) == 3 and found.table() in capsys.readouterr().out


def test_dedup_packs_whole_clips():
    drawn = draw_run_lengths(np.random.default_rng(3), 8)
    packed, slots = dedup.pack(drawn, rows=2, frames=256, positions=400)
    assert packed == [runs.tolist() for runs in drawn[:6]]
    clips = iter(packed)
    for row in slots:
        assert (np.diff(row) >= 0).all()
        counts = [len(list(run)) for slot, run in itertools.groupby(row.tolist()) if slot < 400]
        assert counts == [*next(clips), *next(clips), *next(clips)] and (row == 400).sum() == 256 - 3 * FRAMES


def test_loader(capsys, tmp_path):
    output = tmp_path / "out.json"
    found = loader.main(
        ["--clips", "3", "--read", "20", "--rows", "1", "--width", "16", "--rounds", "1", "--output", str(output)]
    )
    assert len(found.rates) == 3 and found.table() in capsys.readouterr().out
    facts = json.loads(output.read_text())["facts"]
    for (rate,), name in zip(found.rates.values(), found.rates, strict=True):
        megabytes, kilobytes = map(float, re.findall(r"\d+\.\d", facts[f"{name}: MB/s"]))
        assert megabytes == pytest.approx(rate * kilobytes / 1e3, rel=0.01, abs=0.06)


def test_loader_reads_what_the_encoder_takes(tmp_path):
    (clip,) = media_clips.write_media(tmp_path / "media", 1)
    ((video, audio),) = media_clips.MediaClips([clip])
    found = read_media(clip)
    np.testing.assert_array_equal(video, video_input(found.frames))
    np.testing.assert_array_equal(audio, found.audio)
    assert len(found.frames) == clip.num_frames == FRAMES and len(media.read_audio(clip.audio)) == clip.num_samples


def test_features(tmp_path):
    config = AVHubertConfig(
        embed_dim=32, num_layers=2, num_heads=4, ffn_dim=48, frontend_channels=4, resnet_channels=(4, 6, 8, 10),
        conv_pos=8, conv_pos_groups=4,
    )  # fmt: skip
    clips = media_clips.write_media(tmp_path / "media", 3)
    found = features.run(features.make_encoder(config), clips, batch_size=2, rounds=1)
    assert len(found.rates) == 3 and "32, 3 clips" in found.title


def test_encoder():
    config = AVHubertConfig(
        embed_dim=32, num_layers=2, num_heads=4, ffn_dim=48, frontend_channels=4, resnet_channels=(4, 6, 8, 10),
        conv_pos=8, conv_pos_groups=4,
    )  # fmt: skip
    found = encoder.run(features.make_encoder(config), encoder.make_clips(3), batch_size=2, dtype="float32", rounds=1)
    assert [name.split(",")[0] for name in found.rates] == ["JAX", "PyTorch", "PyTorch"]
    assert all(rate > 0 for rate in encoder.product_rates("float32", 64).values())


@pytest.mark.full
def test_startup(tmp_path):
    """The processes once each: a table needs them many times."""
    later, _, theirs = startup.starts(tmp_path).values()
    assert later() == 1 and list((tmp_path / "programs").glob("jit_train_step-*"))
    assert theirs() == 1
    assert startup.compile_seconds(tmp_path / "llm", 1, "unrolled") > 0


def test_a_start_that_fails_says_why():
    with pytest.raises(SystemExit, match="ZeroDivisionError"):
        startup.python("1 / 0")
