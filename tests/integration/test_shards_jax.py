"""The shards stage with JAX, on several devices and in several processes, against PyTorch."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from devices import with_devices
from ports import free_port
from small_shards import FRAMES, LAYER, assert_same_datasets, identity, options, read, refused

from viavsp_jax.data import records
from viavsp_jax.prepare import kmeans
from viavsp_jax.prepare.__main__ import main
from viavsp_jax.prepare.features import extract
from viavsp_jax.prepare.features.encoder_jax import JaxEncoder, padded_length
from viavsp_jax.prepare.features.encoder_torch import TorchEncoder
from viavsp_jax.prepare.features.reading import Reader
from viavsp_jax.prepare.manifest_files import read_manifest

MORE = ["--kind", "both", "--modalities", "av", "audio", "video", "--num_shards", "3"]
FOLDERS = ("av_clean", "audio_clean", "video_clean", "media_clean")


def start(arguments: list[str], devices: int) -> subprocess.Popen:
    """The real command, on so many CPU devices and without PyTorch."""
    command, pipe = [sys.executable, "tests/helpers/prepare_run.py", *arguments], subprocess.PIPE
    return subprocess.Popen(command, env=with_devices(devices), stderr=pipe, text=True, start_new_session=True)


def finish(process: subprocess.Popen) -> str:
    """Waits, and checks that all went well; what it wrote to standard error."""
    try:
        _, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 0, err
    return err


@pytest.fixture(scope="module")
def written(prepared, tmp_path_factory):
    """What JAX writes on four devices, which a batch of three clips does not fill."""
    folder = tmp_path_factory.mktemp("jax")
    finish(start(options(prepared, folder, *MORE, "--backend", "jax"), 4))
    return folder


def assert_close(ours: Path, theirs: Path) -> None:
    """The same clips with the same counts, and features that differ by rounding only."""
    for name in FOLDERS:
        for split in FRAMES:
            found, expected = read(ours / name, split), read(theirs / name, split)
            assert found.keys() == expected.keys()
            for id, example in expected.items():
                for field, value in example.items():
                    if field == "features":  # stored in float16
                        np.testing.assert_allclose(found[id][field].astype(float), value, atol=2e-3, rtol=1e-3)
                    else:
                        np.testing.assert_array_equal(found[id][field], value, err_msg=field)


def test_four_devices_without_pytorch_write_what_pytorch_does(prepared, written, tmp_path):
    main(options(prepared, tmp_path, *MORE))
    assert_close(written, tmp_path)
    for name in FOLDERS:
        lists = sorted(path.name for path in (tmp_path / name).glob("t*.*"))
        assert len(lists) == (10 if name == "media_clean" else 6)
        for file in lists:
            assert (tmp_path / name / file).read_text() == (written / name / file).read_text()
    assert '"backend": "jax"' in (written / "av_clean/provenance.json").read_text()


def test_a_killed_run_goes_on_where_it_was(prepared, written, tmp_path):
    arguments = options(prepared, tmp_path, *MORE, "--backend", "jax")
    process = start(arguments, 4)
    first = [records.shard_path(tmp_path / name, "train", 0, 3) for name in FOLDERS[:3]]
    while not all(path.exists() for path in first) and process.poll() is None:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.communicate()[1]
    finished = {path: identity(path) for path in tmp_path.rglob("viavsp*")}
    assert {Path(path) for path in first} <= finished.keys() and len(finished) < 24
    finish(start(arguments, 4))
    assert {path: identity(path) for path in finished} == finished
    assert_same_datasets(tmp_path, written)


@pytest.mark.full
def test_two_processes_share_the_shards(prepared, written, tmp_path):
    flags = ["--coordinator", f"localhost:{free_port()}", "--processes", "2", "--process"]
    arguments = options(prepared, tmp_path, *MORE, "--backend", "jax", *flags)
    processes = [start([*arguments, str(process)], 2) for process in range(2)]
    done = [set(re.findall(r"(\w+) (\d)/3: +0%", finish(process))) for process in processes]
    every = [(split, str(number)) for split in ("train", "test") for number in (1, 2, 3)]
    assert done == [set(every[0::2]), set(every[1::2])]
    assert_close(tmp_path, written)


@pytest.mark.parametrize("modalities", [("av", "audio", "video"), ("video",), ("audio",)])
def test_batches_of_any_length(prepared, modalities):
    """A length that is padded, a clip that cannot be read, fewer clips than a batch."""
    (clip, *_), repeats = read_manifest(prepared / "manifest", "test"), 7
    with Reader(0) as reader:
        ((short, long),) = reader.read([[clip, clip]])
    frames, audio = (np.concatenate([array] * repeats)[:41] for array in (long.frames, long.audio))
    seen = np.arange(len(frames)) % 7 > 1
    items = [type(long)(frames, audio, b"", long.samples, seen), None, short]
    lengths = [len(frames), 5, len(short.frames)]
    theirs = TorchEncoder.load(prepared / "encoder", "float32", "cpu")
    ours = JaxEncoder(prepared / "encoder", "float32", batch_size=4)
    expected, found = (encoder.encode(items, lengths, modalities, LAYER) for encoder in (theirs, ours))
    assert found.keys() == expected.keys() == set(modalities)
    for name in modalities:
        for one, other in zip(found[name], expected[name], strict=True):
            one, other = ours.to_host(one), theirs.to_host(other)
            assert one.shape[:2] == (4, 42) and one.dtype == np.float32
            for row in (0, 2):
                np.testing.assert_allclose(one[row, : lengths[row]], other[row, : lengths[row]], atol=2e-5)


def test_lengths_are_few_and_little_longer_than_asked_for():
    lengths = np.arange(1, 501)
    padded = np.array([padded_length(int(length)) for length in lengths])
    assert padded_length(76) == 76 and (lengths <= padded).all() and (padded <= lengths * 17 / 16).all()
    assert len(set(padded)) == 31 + 4 * 16 + 1  # below 32 every length; 16 in each of four doublings; 512


def test_bfloat16_is_close(prepared):
    clips = read_manifest(prepared / "manifest", "test")
    found = []
    for dtype in ("float32", "bfloat16"):
        encoder = JaxEncoder(prepared / "encoder", dtype, 3)
        with Reader(0) as reader:
            found.append(dict(extract.encode_clips(encoder, clips, ("av",), LAYER, 3, reader)))
    differences = [np.abs(found[0][i][1]["av"].final - found[1][i][1]["av"].final).max() for i in range(len(clips))]
    assert 1e-4 < max(differences) < 0.15


def test_weights_are_rounded_once(prepared):
    """No batch does it again."""
    encoder = JaxEncoder(prepared / "encoder", "bfloat16", 3)
    batch = {"lengths": np.int32([4] * 3), "audio": np.zeros((3, 4, encoder.config.audio_dim), np.float32)}
    text = str(encoder._forward.trace(encoder._weights, batch, modalities=("audio",), layer=1).jaxpr)
    blocks = encoder._weights["blocks"]
    assert blocks["up"]["kernel"].dtype == "bfloat16" and blocks["attention_norm"]["scale"].dtype == np.float32
    width, wide = encoder.config.embed_dim, encoder.config.ffn_dim
    assert f"bf16[{width},{wide}]" in text and f"f32[{width},{wide}]" not in text


def test_kmeans_with_jax_finds_the_same_centres(prepared, tmp_path):
    inputs = [word for name in ("manifest", "encoder") for word in (f"--{name}", str(prepared / name))]
    settings = ["--layer", str(LAYER), "--num_clusters", "7", "--workers", "0", "--backend", "jax"]
    main(["kmeans", *inputs, "--output", str(tmp_path / "k"), *settings])
    expected, layer = kmeans.load_centers(str(prepared / "kmeans"))
    found, found_layer = kmeans.load_centers(str(tmp_path / "k"))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert found_layer == layer


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--backend", "jax", "--device", "cpu"], "--device cpu goes with --backend torch"),
        (["--backend", "jax", "--dtype", "float16"], "--dtype is float16, expected one of float32, bfloat16"),
        (["--backend", "jax", "--processes", "2"], "--coordinator, --processes and --process belong together"),
        (["--backend", "jax", "--kmeans", "/nowhere"], "/nowhere: no such file"),
        (["--backend", "jax", "--encoder", "/nowhere"], "/nowhere/config.json: no such file"),
        (["--coordinator", "localhost:1"], "--coordinator, --processes and --process go with --backend jax"),
        (["--process", "0"], "--coordinator, --processes and --process go with --backend jax"),
    ],
)
def test_unusable_options_are_named(prepared, tmp_path, capsys, more, words):
    assert words in refused(capsys, options(prepared, tmp_path, *more))
    assert not list(tmp_path.iterdir())


def test_one_shard_is_not_for_several_processes(prepared, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    arguments = options(prepared, tmp_path, "--backend", "jax", "--shard_index", "0")
    assert "--shard_index is 0, but 2 processes share all shards" in refused(capsys, arguments)


def test_shards_of_the_other_backend_are_refused(prepared, written, capsys):
    message = refused(capsys, options(prepared, written, *MORE))
    assert "another backend (jax) than asked for now (torch)" in message
