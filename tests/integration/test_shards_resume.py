"""Shards written in parts: after a kill, by several processes, with other settings."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from odd_folders import ODD
from small_corpus import heard_as, write_encoder
from small_shards import (
    LAYER,
    assert_same_datasets,
    contents,
    identity,
    options,
    read,
    refused,
)

from viavsp_jax.data import records
from viavsp_jax.prepare import kmeans
from viavsp_jax.prepare.__main__ import main


def test_a_killed_run_goes_on_where_it_was(prepared, tmp_path):
    """kill -9 on a real run when its first shard is there."""
    more = ["--modalities", "av", "audio", "--num_shards", "4"]
    main(options(prepared, tmp_path / "whole", *more))
    command = [sys.executable, "-m", "viavsp_jax.prepare", *options(prepared, tmp_path / "out", *more)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, start_new_session=True, env=environment, stderr=subprocess.DEVNULL)
    first = [records.shard_path(tmp_path / "out" / f"{name}_clean", "train", 0, 4) for name in ("av", "audio")]
    deadline = time.monotonic() + 60
    while not all(path.exists() for path in first) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run was over before it could be killed"
    finished = {path: identity(path) for path in (tmp_path / "out").rglob("viavsp-*")}
    assert {Path(path) for path in first} <= finished.keys() and len(finished) < 14
    assert not (tmp_path / "out/av_clean/dataset_info.json").exists()

    main(options(prepared, tmp_path / "out", *more))
    assert {path: identity(path) for path in finished} == finished
    assert_same_datasets(tmp_path / "out", tmp_path / "whole")


def test_only_the_modality_that_is_missing_is_done_again(prepared, tmp_path):
    tmp_path, more = tmp_path / ODD, ["--modalities", "av", "audio", "--split", "train"]
    main(options(prepared, tmp_path, *more))
    before = contents(tmp_path)
    kept, lost = (Path(records.shard_path(tmp_path / f"{name}_clean", "train", 0, 1)) for name in ("av", "audio"))
    kept_identity = identity(kept)
    lost.unlink()
    stale = lost.with_name(f".{lost.name}.abc.tmp")
    stale.write_bytes(b"left by a killed run")
    main(options(prepared, tmp_path, *more))
    assert identity(kept) == kept_identity
    assert contents(tmp_path) == before


def test_shards_may_be_written_by_several_processes(prepared, tmp_path, caplog):
    caplog.set_level("INFO")
    main(options(prepared, tmp_path / "whole", "--num_shards", "5"))
    for index in (3, 0, 4, 2):
        main(options(prepared, tmp_path / "parts", "--num_shards", "5", "--shard_index", str(index)))
    folder = tmp_path / "parts/av_clean"
    assert "split train: other shards are still missing" in caplog.text
    assert not (folder / "dataset_info.json").exists() and not (folder / "train.tsv").exists()
    main(options(prepared, tmp_path / "parts", "--num_shards", "5", "--shard_index", "1"))
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    assert records.complete_splits(folder) == {"test": 3, "train": 5}, "at most one shard a clip"


def test_metadata_is_there_as_soon_as_one_split_is(prepared, tmp_path):
    main(options(prepared, tmp_path, "--split", "test"))
    assert len(read(tmp_path / "av_clean", "test")) == 3
    main(options(prepared, tmp_path, "--split", "train", "--num_shards", "2", "--shard_index", "0"))
    assert len(read(tmp_path / "av_clean", "test")) == 3
    main(options(prepared, tmp_path, "--split", "train", "--num_shards", "2"))
    assert (len(read(tmp_path / "av_clean", "test")), len(read(tmp_path / "av_clean", "train"))) == (3, 7)


def test_shards_of_other_settings_are_refused(prepared, tmp_path, capsys):
    out = tmp_path / "out"
    main(options(prepared, out, "--num_shards", "2", "--split", "test"))
    before = contents(out)

    def message(*more: str, **paths: Path) -> str:
        return refused(capsys, options(prepared, out, *more, **paths))

    two = ("--num_shards", "2", "--split", "test")
    assert "provenance.json: the shards of split 'test' there were made with another num_shards (2)" in message(
        "--num_shards", "3", "--split", "test"
    )
    write_encoder(tmp_path / "encoder", seed=1)
    assert "provenance.json: the shards there were made with another encoder" in message(
        *two, encoder=tmp_path / "encoder"
    )
    floats = heard_as(prepared / "encoder", "float", tmp_path / "floats")
    assert "the shards there were made with another encoder" in message(*two, encoder=floats)
    centers, _ = kmeans.load_centers(str(prepared / "kmeans"))
    kmeans.save_centers(tmp_path / "k", centers + 1, {"layer": LAYER, "seed": 0, "num_frames": 1})
    assert "another kmeans" in message(*two, kmeans=tmp_path / "k")
    assert "another dtype (float32) than asked for now (bfloat16)" in message(*two, "--dtype", "bfloat16")
    (tmp_path / "manifest").mkdir()
    for file in (prepared / "manifest").iterdir():
        (tmp_path / "manifest" / file.name).write_text(file.read_text().replace("số", "thứ"))
    assert "of split 'test' there were made with another manifest" in message(*two, manifest=tmp_path / "manifest")
    assert contents(out) == before

    noisy = ("--noise", "babble", "--snr", "0", "--split", "test")
    main(options(prepared, out, *noisy))
    assert "another noise ({'kind': 'babble', 'snr_db': 0.0, 'seed': 0})" in message(*noisy, "--seed", "1")
    main(options(prepared, out, *two, "--seed", "1"))  # without noise the seed decides nothing
    main(options(prepared, out, "--num_shards", "3", "--split", "train"))  # another split has shards of its own
