"""The encoder in the model: gradients of all its weights, and training by the statistics of each clip."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from convert.avhubert import to_torch_names
from convert.names import REFERENCE_ENCODER
from tests.parity import avhubert, avhubert_flax, avsp, decisions, training
from tests.parity.avhubert import MODALITIES
from tests.parity.avsp import Arrays, Model, Tree, packed, record
from tests.parity.media import clip
from tests.parity.rows import WHOLE, Golden, Row, close, exact, jit, worst
from viavsp_jax.losses import label_loss
from viavsp_jax.models.avhubert.config import EncoderTraining
from viavsp_jax.models.avhubert.encoder import AVHubert, normalized

EXTRACTOR = REFERENCE_ENCODER + "feature_extractor_video."
RESNET = ".resnet."  # in the names of its weights


def load_model(golden: Golden, kind: str, encoder_training: EncoderTraining) -> Model:
    """A recorded language model with the recorded encoder in it."""
    config, params = avhubert_flax.load(golden, "large")
    graph = nnx.graphdef(nnx.eval_shape(lambda: AVHubert(config, dtype=jnp.float32, rngs=nnx.Rngs(0))))
    _, *parts = nnx.split(nnx.merge(graph, params), nnx.Param, nnx.BatchStat)
    weights, statistics = ({"encoder": jax.tree.map(jnp.asarray, nnx.to_pure_dict(part))} for part in parts)
    model = avsp.load_model(golden, kind, encoder=config, encoder_training=encoder_training)
    return dataclasses.replace(model, trainable=model.trainable | weights, frozen=model.frozen | statistics)


def with_clip(golden: Golden, kind: str, utterance: Arrays) -> Arrays:
    """A recorded utterance with what the encoder is to hear and see of it."""
    sample = utterance["id"].removeprefix(f"{kind}_")
    audio, video = clip(golden, golden.json(f"avsp/{kind}_info.json")[sample]["utt_id"][0])
    heard, seen = MODALITIES[sample.split("_")[1]]
    return utterance | {"audio": audio, "video": video, "has_audio": heard, "has_video": np.full(len(video), seen)}


def named(encoder: Tree) -> Arrays:
    """Weights, gradients or statistics of the encoder, by the reference's names."""
    return {REFERENCE_ENCODER + name: value for name, value in to_torch_names(encoder).items()}


def unit(name: str) -> str:
    """The weight whose gradient the error of another's is measured in: its own.

    Softmax does not see what is added to all keys alike: the gradient of their bias is zero, and what either side
    computes is rounding. It is measured in what the weight beside it gets.
    """
    return name.removesuffix("bias") + "weight" if name.endswith("k_proj.bias") else name


def gradient_row(name: str, ours: Arrays, recorded: Mapping[str, np.ndarray]) -> Row:
    """One gradient: every value or, in the ResNet, where rounding decides what is passed back, direction and length."""
    if RESNET in name:
        return training.direction(name, ours[name], recorded[name])
    largest = np.abs(recorded[unit(name)]).max()
    return close(name, ours[name] / largest, recorded[name] / largest, WHOLE)


def settled(row: Row, left_open: Callable[[], Mapping[str, float]]) -> Row:
    """The row of a weight's gradient; if it fails and is one of the ResNet's, with what float32 leaves open there.

    That, by the weights' names, is asked for only then: it takes a minute to find out.
    """
    if row.passed or RESNET not in row.what:
        return row
    return dataclasses.replace(row, tolerance=row.tolerance + left_open()[row.what])


def open_decisions(golden: Golden, kind: str, model: Model, batch: Arrays) -> dict[str, float]:
    """How far apart the gradients of a clip may be in float32, see `decisions`, by the reference's names."""
    encoder, reader = model.build(model.trainable).encoder, avsp.load_model(golden, kind)
    padding = np.zeros(batch["video"].shape[1:3], bool)
    video = normalized(batch["video"][0], padding)
    heard, seen = encoder.audio_features(batch["audio"][0]), encoder.video_features(video)

    def loss(seen):
        frames = {"features": encoder.encode(heard, seen, padding)[1], "frame_slot": batch["frame_slot"][0]}
        logits = reader.build(reader.trainable)(batch | frames)
        return label_loss(logits, batch["targets"], batch["weights"])[0]

    def distance(x, y):
        return training.direction("", x, y).error

    extractor = avhubert.load(golden, "large").feature_extractor_video
    inputs = (torch.from_numpy(np.array(x)) for x in (video, jit(jax.grad(loss))(seen)))
    return {EXTRACTOR + name: far for name, far in decisions.left_open(extractor, *inputs, distance).items()}


def gradient_checks(golden: Golden, kind: str, number: str) -> Iterator[Row]:
    """All gradients of the encoder in evaluation mode, audio and video, from the clip's files to the loss."""
    # One clip, so that there is nothing to unroll but the slow form of the loop.
    model = load_model(golden, kind, EncoderTraining(unroll=True))
    batch = packed(model, [with_clip(golden, kind, record(golden, kind, number, "av"))], 1, of_clips=True)

    def loss(encoder):
        logits = model.build(model.trainable | {"encoder": encoder})(batch, train_encoder=True)
        return label_loss(logits, batch["targets"], batch["weights"])[0]

    ours = named(jit(jax.grad(loss))(model.trainable["encoder"]))
    left_open = functools.cache(lambda: open_decisions(golden, kind, model, batch))
    title, name = f"{kind} sample {number}", f"avsp/{kind}_sample{number}_encoder_grad"
    theirs, norms = golden.arrays(f"{name}s.npz"), golden.json(f"{name}_norms.json")
    for part, inside in (("the ResNet", True), ("the rest", False)):
        rows = [settled(gradient_row(one, ours, theirs), left_open) for one in theirs if (RESNET in one) == inside]
        yield worst(f"{title} gradients of the encoder, {part}", rows)
    yield exact(f"{title} names of the encoder's gradients", sorted(ours) == sorted(norms), True)
    found = {one: (np.linalg.norm(ours[one]) / norms[unit(one)], norms[one] / norms[unit(one)]) for one in norms}
    rows = [settled(close(one, *pair, WHOLE), left_open) for one, pair in found.items()]
    yield worst(f"{title} norms of the encoder's gradients", rows)


def batch_norm_checks(golden: Golden, run: str) -> Iterator[Row]:
    """Trains with a frozen encoder that normalises each clip by its own statistics and averages them."""
    kind = training.KIND
    model = load_model(golden, kind, EncoderTraining(batch_norm="batch"))
    micro = [with_clip(golden, kind, one) for one in training.micro_batches(golden, run)]
    batch = packed(model, micro, 1, of_clips=True)

    @jit
    def features(batch):
        return model.build(model.trainable).features(batch, training=True, key=None, train_encoder=False)[0]

    # The same at every update: the running statistics do not enter.
    found = np.asarray(features(batch)).reshape(len(micro), -1, micro[0]["features"].shape[1])
    micro = [one | {"features": x[: len(one["features"])]} for one, x in zip(micro, found, strict=True)]
    state = yield from training.trace_checks(golden, run, model, batch, avsp.load_model(golden, kind), micro)
    ours, theirs = named(state.batch_stats["encoder"]), golden.arrays(f"train/{run}_running_stats.npz")
    yield exact(f"{run}: names of the statistics", sorted(ours) == sorted(theirs), True)
    counters = [name for name in theirs if name.endswith("num_batches_tracked")]
    yield worst(f"{run}: batches counted", [exact(name, ours[name], theirs[name]) for name in counters])
    averages = [name for name in theirs if name not in counters]
    rows = [close(name, ours[name], theirs[name], WHOLE, relative=True) for name in averages]
    yield worst(f"{run}: running statistics after the last update", rows)


def checks(golden: Golden) -> Iterator[Row]:
    """Gradients of all recorded samples, and the run that trains as the reference does."""
    for name in golden.names("avsp/*_encoder_grads.npz"):
        kind, number = name.removeprefix("avsp/").removesuffix("_encoder_grads.npz").split("_sample")
        yield from gradient_checks(golden, kind, number)
    yield from batch_norm_checks(golden, "bn_train")
