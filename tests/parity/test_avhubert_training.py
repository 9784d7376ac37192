"""The Flax encoder in training: gradients and statistics against PyTorch, which sees one clip at a time, unpadded."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from random_encoders import POST_LN, PRE_LN, random_torch_encoder

from convert.avhubert import load_flax, to_torch_names
from viavsp_jax.models.avhubert import video
from viavsp_jax.models.avhubert.config import PLAIN_TRAINING, EncoderTraining
from viavsp_jax.models.avhubert.encoder import AVHubert
from viavsp_jax.prepare.features import avhubert_torch

CONFIGS = {"pre-LN": PRE_LN, "post-LN": POST_LN}
BATCH = EncoderTraining(batch_norm="batch")
# Two rows of three clips: their lengths, and which modalities they have. The last place is empty.
LENGTHS = np.array([[3, 2, 2], [1, 4, 0]])
HEARD = np.array([[True, True, False], [True, True, False]])
FRAMES = 5
SEEN = np.repeat(np.array([[True, False, True], [True, True, False]])[..., None], FRAMES, -1)
LOST = SEEN.copy()  # with frames inside clips that are not seen
LOST[0, 0, 1] = LOST[1, 1, 0] = LOST[1, 1, 3] = False
# Compiling takes far longer than running, so XLA shall not optimise.
jit = functools.partial(jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": "0"})


def clips(config, seen=SEEN):
    """Inputs of the clips above, padded, and weights for a loss."""
    rng = np.random.default_rng(0)
    padding = np.arange(FRAMES) >= LENGTHS[..., None]
    shapes = {"audio": (config.audio_dim,), "video": (88, 88), "targets": (config.embed_dim,)}
    batch = {name: rng.normal(size=(*padding.shape, *shape)).astype(np.float32) for name, shape in shapes.items()}
    for values in batch.values():
        values[padding] = 0
    return batch | {"padding": padding, "has_audio": HEARD, "has_video": seen}


def product(graph, params, stats, batch, key=None):
    """(Features times targets, (features, new statistics)) of a call in training."""
    model = nnx.merge(graph, params, stats)
    inputs = (batch[name] for name in ("audio", "video", "padding", "has_audio", "has_video"))
    features = model(*inputs, training=True, key=key)
    loss = (features.astype(jnp.float32) * batch["targets"]).sum()
    return loss, (features, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))


@jit
def forward(graph, params, stats, batch, key=None):
    """(Features, new statistics)."""
    return product(graph, params, stats, batch, key)[1]


@jit
def backward(graph, params, stats, batch, key=None):
    """(Features, gradients, new statistics), the latter two by PyTorch's names once `named`."""
    gradients, (features, stats) = jax.grad(product, argnums=1, has_aux=True)(graph, params, stats, batch, key)
    return features, gradients, stats


def named(features, gradients, stats):
    return np.asarray(features), to_torch_names(jax.device_get(gradients)), to_torch_names(jax.device_get(stats))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of random encoders, by variant."""
    found = {name: tmp_path_factory.mktemp(name) for name in CONFIGS}
    for name, folder in found.items():
        avhubert_torch.save_encoder(random_torch_encoder(CONFIGS[name]), folder)
    return found


def load(folder, training=PLAIN_TRAINING, dtype=jnp.float32, fold=False):
    """A structure, weights and statistics."""
    config, params = load_flax(folder, fold)
    model = nnx.eval_shape(lambda: AVHubert(config, training, dtype=dtype, fold=fold, rngs=nnx.Rngs(0)))
    model = nnx.merge(nnx.graphdef(model), jax.tree.map(jnp.asarray, params))
    graph, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    return graph, nnx.to_pure_dict(params), nnx.to_pure_dict(stats)


def torch_run(model, batch):
    """Runs clip after clip in float64; returns the features, zeros where padded. Gradients add up in the model."""
    found = np.zeros(batch["targets"].shape)
    for row, slot in np.ndindex(LENGTHS.shape):
        length = LENGTHS[row, slot]
        if length == 0:
            continue
        audio, video, targets = (
            torch.from_numpy(batch[name][row, slot, :length])[None].double() for name in ("audio", "video", "targets")
        )
        heard = model.audio_features(audio) if HEARD[row, slot] else None
        marks = batch["has_video"][row, slot, :length]
        seen = model.video_features(video, None if marks.all() else torch.tensor(marks)[None]) if marks.any() else None
        features = model.encode(heard, seen)[1]
        (features * targets).sum().backward()
        found[row, slot, :length] = features[0].detach()
    return found


def assert_close(ours, theirs, tolerance):
    """Of two dicts, in units of the largest value of each array."""
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        np.testing.assert_allclose(ours[name], expected, rtol=0, atol=tolerance * np.abs(expected).max(), err_msg=name)


def without_key_biases(gradients):
    """A number added to all keys does not move attention: what gradient there is, is rounding."""
    found = dict(gradients)
    for name in gradients:
        if name.endswith("k_proj.bias"):
            assert np.abs(found.pop(name)).max() < 1e-5 * np.abs(gradients[name.replace("bias", "weight")]).max()
    return found


@pytest.mark.parametrize(
    ("name", "training", "seen"),
    [("pre-LN", PLAIN_TRAINING, LOST), ("post-LN", PLAIN_TRAINING, SEEN), ("pre-LN", BATCH, SEEN)],
    ids=["pre-LN with lost frames", "post-LN", "pre-LN with batch statistics"],
)
def test_features_gradients_and_statistics_equal_torchs(folders, name, training, seen):
    batch = clips(CONFIGS[name], seen)
    features, gradients, stats = named(*backward(*load(folders[name], training), batch))
    # In float64, since max-pool and rectifiers make float32's rounding a matter of luck where two values nearly tie.
    model = avhubert_torch.load_encoder(folders[name], torch.float64).train(training is BATCH)
    expected = torch_run(model, batch)
    np.testing.assert_allclose(np.where(batch["padding"][..., None], 0, features), expected, atol=1e-5, rtol=0)
    theirs = {name: weight.grad.numpy() for name, weight in model.named_parameters()}
    assert all(np.abs(gradient).max() > 0 for gradient in theirs.values())
    assert_close(without_key_biases(gradients), without_key_biases(theirs), 1e-4)
    assert_close(stats, {name: value.numpy() for name, value in model.named_buffers()}, 1e-5)
    counters = {int(value) for name, value in stats.items() if name.endswith("num_batches_tracked")}
    assert counters == {600_000 + (4 if training is BATCH else 0)}


@pytest.fixture(scope="module")
def trained(folders):
    """What the clips above give with batch statistics: features, gradients, new statistics."""
    return named(*backward(*load(folders["pre-LN"], BATCH), clips(PRE_LN)))


def test_one_row_with_empty_places_and_one_clip_a_row_give_the_same(folders, trained):
    arguments, batch = load(folders["pre-LN"], BATCH), clips(PRE_LN)
    in_one, alone = (
        {name: value.reshape(*shape, *value.shape[2:]) for name, value in batch.items()} for shape in ((1, 6), (6, 1))
    )
    in_one = {name: np.concatenate([value, np.zeros_like(value)], 1) for name, value in in_one.items()}
    in_one["padding"][:, 6:] = True
    in_one["has_video"][:, 6:] = True  # seen or not, there is no frame
    features, gradients, stats = named(*backward(*arguments, in_one))
    assert np.isfinite(features).all()
    assert_close(without_key_biases(gradients), without_key_biases(trained[1]), 1e-4)
    features_alone, stats_alone = forward(*arguments, alone)
    real = ~batch["padding"]
    for found in (features[:, :6], features_alone):
        np.testing.assert_allclose(found.reshape(trained[0].shape)[real], trained[0][real], atol=1e-5, rtol=0)
    assert_close(stats, trained[2], 1e-6)
    assert_close(to_torch_names(stats_alone), trained[2], 1e-6)


def test_rows_without_a_clip_change_nothing(folders):
    batch = {name: np.zeros_like(value) for name, value in clips(PRE_LN).items()}
    batch["padding"][:], batch["has_video"][:] = True, True
    arguments = load(folders["pre-LN"], BATCH)
    features, gradients, new_stats = jax.device_get(backward(*arguments, batch))
    assert np.isfinite(features).all()
    assert all((gradient == 0).all() for gradient in jax.tree.leaves(gradients))
    jax.tree.map(np.testing.assert_array_equal, new_stats, arguments[2])


def test_the_video_of_what_is_not_seen_stays_finite(folders):
    """Convolutions of any scale are normalised where a clip has frames; elsewhere they must not multiply up."""
    graph, params, stats = load(folders["pre-LN"], BATCH)
    params["video"] = jax.tree.map(lambda x: x * 10 if x.ndim > 3 else x, params["video"])
    gradients = jax.device_get(backward(graph, params, stats, clips(PRE_LN))[1])
    assert all(np.isfinite(gradient).all() for gradient in jax.tree.leaves(gradients))


def test_what_a_clip_lacks_has_no_effect(folders, trained):
    arguments, real = load(folders["pre-LN"], BATCH), ~clips(PRE_LN)["padding"]
    for seen in (SEEN, LOST):
        batch = clips(PRE_LN, seen)
        expected, averages = forward(*arguments, batch)
        batch["audio"][~HEARD] = 7
        batch["video"][~seen & real] *= 7
        features, stats = forward(*arguments, batch)
        np.testing.assert_allclose(features[real], expected[real], atol=1e-5, rtol=0)
        assert_close(to_torch_names(stats), to_torch_names(averages), 1e-6)
        if seen is SEEN:  # and without gradients all is the same
            np.testing.assert_allclose(features[real], trained[0][real], atol=1e-5, rtol=0)
            assert_close(to_torch_names(stats), trained[2], 1e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_evaluation_equals_encode(folders, name):
    # Batch statistics and both dropouts are for training.
    graph, *state = load(folders[name], EncoderTraining(0.5, 0.5, "batch"))
    batch = clips(CONFIGS[name])

    @jax.jit
    def both_ways(state, batch):
        model = nnx.merge(graph, *state)
        features = model(*(batch[name] for name in ("audio", "video", "padding", "has_audio", "has_video")))
        expected = []
        for row, slot in np.ndindex(LENGTHS.shape):
            heard = model.audio_features(batch["audio"][row, slot][None]) if HEARD[row, slot] else None
            seen = model.video_features(batch["video"][row, slot][None]) if SEEN[row, slot].any() else None
            if LENGTHS[row, slot]:
                expected.append(model.encode(heard, seen, batch["padding"][row, slot][None])[1])
        return features, jnp.concatenate(expected), nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    features, expected, stats = both_ways(state, batch)
    np.testing.assert_allclose(features[LENGTHS > 0], expected, atol=1e-5, rtol=0)
    jax.tree.map(np.testing.assert_array_equal, stats, state[1])


def test_draws_follow_the_key(folders):
    graph, *state = load(folders["pre-LN"], EncoderTraining(layer_drop=0.5, activation_dropout=0.5))
    batch = clips(PRE_LN)
    one, again, other, without = (
        forward(graph, *state, batch, key)[0] for key in (jax.random.key(1), jax.random.key(1), jax.random.key(2), None)
    )
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 0.01
    expected, _ = forward(*load(folders["pre-LN"]), batch)
    np.testing.assert_allclose(without, expected, atol=1e-5, rtol=0)


def test_bfloat16_is_near_float32(folders, trained):
    batch = clips(PRE_LN)
    real = ~batch["padding"]
    features, stats = forward(*load(folders["pre-LN"], BATCH, jnp.bfloat16), batch)
    assert features.dtype == jnp.bfloat16
    np.testing.assert_allclose(features[real].astype(np.float32), trained[0][real], atol=0.1, rtol=0)
    assert_close(to_torch_names(stats), trained[2], 0.02)

    # Gradients by the running statistics: through those of so few frames and channels they cancel below the precision
    # of bfloat16, in PyTorch as well. And of kernels: a rectifier's slope may hang on a handful of pixels.
    features, gradients, _ = named(*backward(*load(folders["pre-LN"], dtype=jnp.bfloat16), batch))
    expected_features, expected, _ = named(*backward(*load(folders["pre-LN"]), batch))
    np.testing.assert_allclose(features[real].astype(np.float32), expected_features[real], atol=0.1, rtol=0)
    for name, gradient in without_key_biases(expected).items():
        assert gradients[name].dtype == np.float32
        if gradient.ndim > 1:
            both = np.sqrt((gradients[name] ** 2).sum() * (gradient**2).sum())
            assert (gradients[name] * gradient).sum() > 0.98 * both, name


def temporary_bytes(*args):
    return backward.lower(*args).compile().memory_analysis().temp_size_in_bytes


def test_the_backward_pass_keeps_nothing_of_a_clip_but_its_frames(folders, monkeypatch):
    monkeypatch.setattr(video, "FRAMES_AT_ONCE", 1)  # one clip at a time, however long it is
    arguments, batch = load(folders["pre-LN"]), clips(PRE_LN)
    longer = {name: np.concatenate([value] * 4, 1) for name, value in batch.items()}
    growth = temporary_bytes(*arguments, longer) - temporary_bytes(*arguments, batch)
    # What the first convolution gives for a clip, one of its larger activations, takes 1.125 times its frames.
    assert growth < 1.5 * 3 * batch["video"].nbytes


def test_a_folded_positional_convolution_gives_the_same(folders):
    graph, params, stats = load(folders["pre-LN"])
    folded_graph, folded, _ = load(folders["pre-LN"], fold=True)
    assert params["positional_conv"].keys() == {"v", "g", "bias"}
    assert folded["positional_conv"].keys() == {"kernel", "bias"}
    expected, _ = forward(graph, params, stats, clips(PRE_LN))
    found, _ = forward(folded_graph, folded, stats, clips(PRE_LN))
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
