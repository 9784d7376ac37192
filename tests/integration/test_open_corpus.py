"""ViCocktail's layout from its archives to word error rates, and the same clips in other layouts."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from open_corpus import ARCHIVES, TEST, TRAIN, as_files, read_archive
from small_corpus import WIDTH, write_encoder
from small_run import make_llm, small_config

from viavsp_jax import evaluate, train
from viavsp_jax.data import records
from viavsp_jax.data.examples import FEATURES, MEDIA
from viavsp_jax.data.wav import write_speech
from viavsp_jax.prepare.__main__ import main

SHARDS = ["--modalities", "av", "audio", "--kind", "both", "--num_shards", "2"]
NOISE = "snr_0_interferer_1"
DATASETS = [f"{name}_{condition}" for condition in ("clean", NOISE) for name in ("av", "audio", "media")]


def options(stage, folder, output, *more):
    line = [stage, "--manifest", f"{folder}/manifest", "--encoder", f"{folder.parent}/encoder", "--output", str(output)]
    return [*line, "--workers", "0", "--device", "cpu", "--batch_size", "4", *more]


def prepare(folder, data, *more):
    """Manifest and shards of a corpus, in `folder`."""
    main(["manifest", "--data", str(data), "--output", str(folder / "manifest"), "--workers", "0", *more])
    shards = ["--kmeans", f"{folder.parent}/kmeans", *SHARDS]
    main(options("shards", folder, folder / "shards", *shards))


@pytest.fixture(scope="module")
def open_corpus(tmp_path_factory):
    """Shards of the recorded archives, made with a narrow encoder and its centres."""
    folder = tmp_path_factory.mktemp("open corpus")
    write_encoder(folder / "encoder")
    (folder / "tars").mkdir()
    valid = ["--valid", "0.3"]
    main(["manifest", "--data", str(ARCHIVES.parent), "--output", f"{folder}/tars/manifest", "--workers", "0", *valid])
    main(options("kmeans", folder / "tars", folder / "kmeans", "--layer", "2", "--num_clusters", "20"))
    prepare(folder / "tars", ARCHIVES.parent, *valid)
    return folder


def contents(shards):
    """All records of all datasets there, by dataset, split and id."""
    found = {}
    for name in DATASETS:
        kind = MEDIA if name.startswith("media") else FEATURES
        for split in records.complete_splits(shards / name, kind) if (shards / name).exists() else ():
            found |= {(name, split, record["id"]): record for record in records.open_split(shards / name, split, kind)}
    return found


def check_equal(ours, others):
    assert ours.keys() == others.keys()
    for key, record in ours.items():
        for field, value in record.items():
            np.testing.assert_array_equal(others[key][field], value, err_msg=f"{key} {field}")


def test_test_sets_of_a_condition_are_datasets_of_their_own(open_corpus):
    found = contents(open_corpus / "tars/shards")
    count = {"clean": {"train": 9, "valid": 3, "test": 4}, NOISE: {"test": 4}}
    for name in DATASETS:
        expected = count[name.partition("_")[2]]
        splits = [split for dataset, split, _ in found if dataset == name]
        assert {split: splits.count(split) for split in splits} in (expected, expected | {"train": 6, "valid": 6})
    clean, noisy = (found["media_" + name, "test", "SynosvV5BTK_0_8_449_506"] for name in ("clean", NOISE))
    assert clean["transcript"] == noisy["transcript"] and not np.array_equal(clean["audio"], noisy["audio"])


def test_the_same_clips_in_other_layouts_make_the_same_records(open_corpus, tmp_path):
    """In VASR's, and in a table; their wav files hold the sound of the archives, decoded to int16."""
    rows = []
    for path, split in ((TRAIN, "train"), (TEST, "test")):
        samples = {sample["sample_id"].decode(): sample for sample in read_archive(path).values()}
        for id, (frames, sound) in as_files(tmp_path / "c/visual" / split, samples).items():
            (tmp_path / "c/audio" / split).mkdir(parents=True, exist_ok=True)
            write_speech(tmp_path / f"c/audio/{split}/{id}.wav", sound)
            row = (id, split, 25, 16_000, samples[id]["label"].decode(), len(frames), len(sound), split)
            rows.append((*row, id.rsplit("_", 4)[0]))
    columns = "id shard fps sampling_rate transcript video_num_frames audio_num_frames split channel".split()
    table = pd.DataFrame(rows, columns=columns)
    table.drop(columns="channel").to_parquet(tmp_path / "c/metadata.parquet")
    table[["id", "channel"]].to_json(tmp_path / "c/mapping.json", orient="records")
    for kind, suffix in (("visual", "mp4"), ("audio", "wav")):
        table[kind] = [f"c/{kind}/{row.shard}/{row.id}.{suffix}" for row in table.itertuples()]
    table.rename(columns={"visual": "film", "transcript": "words"}).to_csv(tmp_path / "clips.csv", index=False)
    ours = {key: one for key, one in contents(open_corpus / "tars/shards").items() if not key[0].endswith(NOISE)}
    columns = ["--columns", "video=film", "text=words"]
    for name, data, more in (("vasr", tmp_path / "c", []), ("table", tmp_path / "clips.csv", columns)):
        prepare(open_corpus / name, data, "--valid", "0.3", *more)
        check_equal(ours, contents(open_corpus / name / "shards"))


def test_a_killed_run_goes_on(open_corpus, tmp_path):
    """Both stages, killed in the middle of the archives, end as they would have."""
    folder = tmp_path / "again"
    (tmp_path / "encoder").symlink_to(open_corpus / "encoder")
    (tmp_path / "kmeans").symlink_to(open_corpus / "kmeans")
    command, one_thread = [sys.executable, "-m", "viavsp_jax.prepare"], os.environ | {"OMP_NUM_THREADS": "1"}
    stages = {
        "manifest": ["manifest", "--data", str(ARCHIVES.parent), "--output", f"{folder}/manifest", "--valid", "0.3"],
        "shards": options("shards", folder, folder / "shards", "--kmeans", f"{tmp_path}/kmeans", *SHARDS),
    }
    written = {"manifest": "lengths/*", "shards": "av_clean/*array_record*"}
    for name, arguments in stages.items():
        with subprocess.Popen([*command, *arguments], env=one_thread, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and not list((folder / name).glob(written[name])):
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
        subprocess.run([*command, *arguments], env=one_thread, stderr=subprocess.DEVNULL, check=True)
    assert process.returncode == -signal.SIGKILL, "it was killed before it was done"
    check_equal(contents(open_corpus / "tars/shards"), contents(folder / "shards"))


def test_training_and_evaluation_on_the_archives(open_corpus, tmp_path):
    llm = make_llm(tmp_path / "llm")
    config = small_config(llm, open_corpus / "tars/shards")
    config.data.feature_width, config.data.row.frames = WIDTH, 128
    config.data.train, config.updates = ("av_clean", "audio_clean"), 2
    config.evaluate.names = (f"av_{NOISE}", "av_clean", f"audio_{NOISE}")
    train.train(config, tmp_path / "work")
    scores = evaluate.evaluate(config, tmp_path / "work")
    assert {name: score["clips"] for name, score in scores.items()} == dict.fromkeys(config.evaluate.names, 4)
    (page,) = (tmp_path / "work/evaluations").glob("*/report.html")
    assert NOISE in page.read_text(encoding="utf-8")
