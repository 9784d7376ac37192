import itertools
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from places import GOLDEN
from sklearn.cluster import MiniBatchKMeans
from small_corpus import WIDTH, write_corpus, write_encoder

from viavsp_jax.data import media
from viavsp_jax.data.features import audio_features, video_input
from viavsp_jax.prepare import kmeans
from viavsp_jax.prepare.__main__ import main
from viavsp_jax.prepare.manifest_files import read_manifest

RECORDED = GOLDEN / "kmeans"
FRAMES = [5, 9, 12, 7, 11, 6]


@pytest.mark.parametrize(
    ("labels", "counts"),
    [([], []), ([7], [1]), ([1, 1, 1], [3]), ([1, 2, 1], [1, 1, 1]), ([0, 0, 5, 5, 0], [2, 2, 1])],
)
def test_run_lengths(labels, counts):
    assert kmeans.run_lengths(np.array(labels, int)).tolist() == counts


def test_assign_equals_scikit_learn_and_the_distances():
    """On real features, and far from the origin, where float32, so scikit-learn, errs 1 in 8 times."""
    recorded = np.load(RECORDED / "real_features.npz")
    real = np.concatenate([recorded[f"feat{i}"] for i in range(5)])
    far = np.random.default_rng(0).normal(size=(300, 16)).astype(np.float32) + 1000
    for features in (real, far):
        model = MiniBatchKMeans(40, random_state=0, n_init=1).fit(features)
        found = kmeans.assign(features, model.cluster_centers_)
        distances = np.linalg.norm(features[:, None].astype(float) - model.cluster_centers_, axis=2)
        np.testing.assert_array_equal(found, distances.argmin(1))
        if features is real:
            np.testing.assert_array_equal(found, model.predict(features))


def test_fit_equals_scikit_learn_with_the_reference_s_settings():
    features = np.random.default_rng(0).normal(size=(600, 12)).astype(np.float32)
    peer = MiniBatchKMeans(
        n_clusters=9,
        init="k-means++",
        max_iter=100,
        batch_size=10000,
        tol=0,
        max_no_improvement=100,
        init_size=None,
        n_init=20,
        reassignment_ratio=0,
        random_state=3,
    ).fit(features)
    centers = kmeans.fit(features, 9, seed=3)
    assert centers.dtype == np.float32
    np.testing.assert_allclose(centers, peer.cluster_centers_, rtol=1e-5, atol=1e-6)
    assert kmeans.mean_inertia(features, centers) == pytest.approx(-peer.score(features) / 600, rel=1e-5)
    assert np.abs(kmeans.fit(features, 9, seed=4) - centers).max() > 1e-3


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A corpus, its manifest and an encoder."""
    folder = tmp_path_factory.mktemp("kmeans")
    write_corpus(folder / "corpus", {"train": FRAMES})
    main(["manifest", "--data", str(folder / "corpus"), "--output", str(folder / "manifest")])
    write_encoder(folder / "encoder")
    return folder


def learn(folder, output, *options):
    main(
        ["kmeans", "--manifest", str(folder / "manifest"), "--encoder", str(folder / "encoder"), "--output"]
        + [str(output), "--device", "cpu", "--workers", "0", "--layer", "2", "--num_clusters", "6", *options]
    )


def layer_features(model, clip, layer):
    """One clip alone, without padding or batching."""
    frames = media.read_video(clip.video)
    audio = audio_features(media.read_audio(clip.audio), len(frames))
    with torch.inference_mode():
        heard = model.audio_features(torch.from_numpy(audio)[None])
        seen = model.video_features(torch.from_numpy(video_input(frames))[None])
        return model.encode(heard, seen, None, layer)[0][0].numpy()


def test_the_stage_clusters_the_layer_s_features(prepared, tmp_path, caplog):
    caplog.set_level("INFO")
    learn(prepared, tmp_path / "k.safetensors", "--seed", "5", "--batch_size", "4", "--workers", "0")
    model = write_encoder(tmp_path / "encoder")
    clips = read_manifest(prepared / "manifest", "train")
    features = np.concatenate([layer_features(model, clip, 2) for clip in clips])
    centers, layer = kmeans.load_centers(str(tmp_path / "k.safetensors"))
    assert layer == 2 and centers.shape == (6, WIDTH)
    np.testing.assert_allclose(centers, kmeans.fit(features, 6, seed=5), atol=1e-4)
    with safetensors.safe_open(tmp_path / "k.safetensors", framework="numpy") as file:
        assert file.metadata() == {"layer": "2", "seed": "5", "num_frames": str(sum(FRAMES))}
    printed = float(caplog.text.rsplit("mean inertia per frame: ")[1])
    nearest = centers[kmeans.assign(features, centers)]
    assert printed == pytest.approx(((features - nearest) ** 2).sum(1).mean(), abs=1e-3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["encoder", "k.safetensors"], "no scratch left"


def test_percent_takes_that_share_of_the_clips(prepared, tmp_path):
    found = []
    for seed in ("0", "1", "2", "0"):
        learn(prepared, tmp_path / "k.safetensors", "--fraction", "0.5", "--seed", seed)
        with safetensors.safe_open(tmp_path / "k.safetensors", framework="numpy") as file:
            found.append((file.metadata()["num_frames"], file.get_tensor("centers").tobytes()))
    assert found[0] == found[3] and len(set(found)) == 3
    possible = {sum(three) for three in itertools.combinations(FRAMES, 3)}
    assert {int(num_frames) for num_frames, _ in found} <= possible


def test_clips_that_cannot_be_read_leave_no_rows(tmp_path, capsys, caplog):
    write_corpus(tmp_path / "corpus", {"train": FRAMES})
    main(["manifest", "--data", str(tmp_path / "corpus"), "--output", str(tmp_path / "manifest")])
    model = write_encoder(tmp_path / "encoder")
    clips = read_manifest(tmp_path / "manifest", "train")
    Path(clips[1].audio).write_bytes(b"RIFF")
    tsv = tmp_path / "manifest/train.tsv"  # one clip decodes to 2 frames less than listed, one to 1 more
    tsv.write_text(tsv.read_text().replace("\t12\t", "\t14\t").replace("\t7\t", "\t6\t"))
    learn(tmp_path, tmp_path / "k.safetensors")
    assert "skipped train-001: " in caplog.text and clips[1].audio in caplog.text
    parts = [layer_features(model, clips[i], 2) for i in (0, 2, 3, 4, 5)]
    parts[2] = parts[2][:6]
    features = np.concatenate(parts)
    centers, _ = kmeans.load_centers(str(tmp_path / "k.safetensors"))
    np.testing.assert_allclose(centers, kmeans.fit(features, 6, seed=0), atol=1e-4)

    for clip in clips:
        Path(clip.video).write_bytes(b"no video")
    with pytest.raises(SystemExit):
        learn(tmp_path, tmp_path / "none.safetensors")
    assert "none of 6 clips could be read, the first: " in capsys.readouterr().err
    assert not (tmp_path / "none.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--fraction", "0"], "--fraction is 0, expected a number above 0 and at most 1"),
        (["--fraction", "10"], "--fraction is 10,"),
        (["--percent", "nan"], "--fraction is nan,"),
        (["--seed", "-1"], "--seed is -1, expected a whole number at least 0 and at most 4294967295"),
        (["--output", "/dev/null/k"], "--output /dev/null/k: cannot be written (Not a directory)"),
        (["--num_clusters", "0"], "--num_clusters is 0"),
        (["--num_clusters", "51"], "gives 50 frames, expected at least as many as --num_clusters 51"),
        (["--layer", "0"], "--layer is 0, expected a whole number at least 1"),
        (["--layer", "4"], "--layer is 4, expected 1 to 3"),
        (["--split", "test"], "test.tsv: no such file"),
        (["--device", "abacus"], "--device abacus is not usable here"),
        (["--batch_size", "0"], "--batch_size is 0"),
    ],
)
def test_unusable_options_are_named(prepared, tmp_path, capsys, options, words):
    with pytest.raises(SystemExit) as caught:
        learn(prepared, tmp_path / "k.safetensors", *options)
    assert caught.value.code == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
