"""Frames that are not seen: PyTorch, Flax and Flax on packed rows against each other, and against the recordings."""

import lzma

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from places import GOLDEN
from random_encoders import POST_LN, PRE_LN, random_torch_encoder

from convert.avhubert import load_flax
from convert.from_fairseq import convert
from viavsp_jax.models.avhubert.encoder import AVHubert
from viavsp_jax.prepare.features import avhubert_torch

CLOSE = dict(atol=1e-4, rtol=0)
LENGTHS = (14, 9)
SEEN = np.ones((2, 14), bool)
SEEN[0, 5:8] = SEEN[0, 10] = SEEN[1, :2] = False  # inside, one alone, at the start


@pytest.fixture(scope="module", params=["large", "postln_add"])
def recorded(request, tmp_path_factory):
    """(The encoder of a recorded checkpoint, its recordings, the inputs they were made from)"""
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = folder / "checkpoint.pt"
    checkpoint.write_bytes(lzma.decompress((GOLDEN / "avhubert" / f"{request.param}_tiny.pt.xz").read_bytes()))
    convert(checkpoint, folder / "encoder")
    return folder / "encoder", np.load(GOLDEN / "avhubert" / f"{request.param}_utt0.npz"), np.load(
        GOLDEN / "media" / "utt0.npz"
    )  # fmt: skip


@pytest.fixture(scope="module", params=["pre-LN", "post-LN"])
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    avhubert_torch.save_encoder(random_torch_encoder({"pre-LN": PRE_LN, "post-LN": POST_LN}[request.param]), folder)
    return folder


def by_torch(folder, audio, video, seen):
    """Clips of any lengths, in one batch, with audio and video."""
    model = avhubert_torch.load_encoder(folder)
    found = model.encode_clips(audio, video, [len(one) for one in audio], ("av",), None, seen)["av"][1]
    return [one[: len(clip)].numpy() for one, clip in zip(found, audio, strict=True)]


def by_flax(folder, audio, video, seen):
    """The same twice: by the encoder's parts, and as a row of clips."""
    config, params = load_flax(folder)
    graph = nnx.graphdef(nnx.eval_shape(lambda: AVHubert(config, dtype=jnp.float32, rngs=nnx.Rngs(0))))
    longest = max(map(len, audio))
    padded = [np.stack([np.pad(one, [(0, longest - len(one)), *[(0, 0)] * (one.ndim - 1)]) for one in clips])
              for clips in (audio, video, seen)]  # fmt: skip
    mask = np.arange(longest)[None] >= np.array([[len(one)] for one in audio])

    @jax.jit
    def run(params, audio, video, seen):
        model = nnx.merge(graph, params)
        parts = model.encode(model.audio_features(audio), model.video_features(video, seen), mask)[1]
        row = model(audio[None], video[None], mask[None], jnp.ones((1, len(audio)), bool), seen[None])
        return parts, row[0]

    return [[one[: len(clip)] for one, clip in zip(found, audio, strict=True)] for found in run(params, *padded)]


def test_a_clip_of_which_nothing_is_seen_is_audio_alone(recorded):
    folder, outputs, media = recorded
    audio, video = [media["audio_norm"]], [media["video_transformed"]]
    none = [np.zeros(len(audio[0]), bool)]
    for (found,) in (by_torch(folder, audio, video, none), *by_flax(folder, audio, video, none)):
        np.testing.assert_allclose(found, outputs["finetune_a"], **CLOSE)
    for (found,) in (by_torch(folder, audio, video, [~none[0]]), *by_flax(folder, audio, video, [~none[0]])):
        np.testing.assert_allclose(found, outputs["finetune_av"], **CLOSE)


def test_frames_that_are_not_seen_are_zeros_behind_the_extractor(folder):
    model, rng = avhubert_torch.load_encoder(folder), np.random.default_rng(0)
    audio, video = ([rng.normal(size=(t, *shape)).astype(np.float32) for t in LENGTHS]
                    for shape in ((model.config.audio_dim,), (88, 88)))  # fmt: skip
    seen = [SEEN[row, :length] for row, length in enumerate(LENGTHS)]
    found = by_torch(folder, audio, video, seen)
    for row, one in enumerate(found):
        with torch.inference_mode():
            pictures = torch.tensor(video[row] * seen[row][:, None, None])[None]
            features = model.video_features(pictures) * torch.tensor(seen[row])[None, :, None]
            expected = model.encode(model.audio_features(torch.tensor(audio[row])[None]), features)[1][0]
        np.testing.assert_allclose(one, expected, **CLOSE)
        whole = by_torch(folder, [audio[row]], [video[row]], None)[0]
        assert np.abs(one - whole).max() > 0.01, "it matters"
    for others in by_flax(folder, audio, video, seen):
        for one, other in zip(found, others, strict=True):
            np.testing.assert_allclose(other, one, **CLOSE)
    # Whatever the pictures were.
    for row, marks in enumerate(seen):
        video[row][~marks] *= 100
    for others in (by_torch(folder, audio, video, seen), *by_flax(folder, audio, video, seen)):
        for one, other in zip(found, others, strict=True):
            np.testing.assert_allclose(other, one, **CLOSE)
