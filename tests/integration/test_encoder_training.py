"""Training with the encoder in the model: against cached features, on either side of the switch, and resumed."""

import dataclasses
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from devices import with_devices
from flax import nnx
from small_media import media_config
from tensorboard_events import scalars

from convert.avhubert import load_flax
from viavsp_jax import evaluate, experiment, train, update
from viavsp_jax.checkpoint import Checkpoints
from viavsp_jax.compatibility import check_fits
from viavsp_jax.data import pipeline
from viavsp_jax.losses import label_loss
from viavsp_jax.models.avhubert.encoder import AVHubert, normalized
from viavsp_jax.optimizer import learning, make_optimizer
from viavsp_jax.run_settings import read_settings
from viavsp_jax.runtime import programs
from viavsp_jax.runtime.errors import InputError
from viavsp_jax.state import TrainState

QUICKLY = {"xla_backend_optimization_level": 0}  # compiled, that is; what is compiled is run once or twice


@pytest.fixture
def config(media_folders):
    return media_config(*media_folders)


@dataclasses.dataclass
class Run:
    """A new state of training, the frozen weights and a batch."""

    exp: experiment.Experiment
    state: TrainState
    frozen: dict
    batch: dict


def start(config):
    exp = experiment.load_experiment(config)
    state = update.init_state(exp, make_optimizer(exp.settings.optimizer)[0])
    return Run(exp, state, exp.load_frozen(), next(pipeline.training_batches(exp.settings.data, exp.prompt)))


def changed(a, b):
    return [not np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]


def adam(state, part):
    """Adam's state of a part of what learns."""
    return state.opt_state.inner_states[part].inner_state[0]


def quickly(function, *args):
    return jax.jit(function).lower(*args).compile(QUICKLY)(*args)


def test_the_encoder_in_the_model_gives_what_caching_its_features_gives(config, media_folders):
    run = start(config)
    batch, weights = run.batch, (run.state.trainable, run.state.batch_stats, run.frozen)
    encoder_config, params = load_flax(media_folders[2])
    graph = nnx.graphdef(nnx.eval_shape(lambda: AVHubert(encoder_config, dtype=jnp.float32, rngs=nnx.Rngs(0))))

    def cache(params, audio, video, padding):
        encoder = nnx.merge(graph, params)
        heard, seen = encoder.audio_features(audio), encoder.video_features(normalized(video, padding))
        return encoder.encode(heard, seen, padding)[1]

    slots = batch["frame_slot"]
    clips = [x.reshape(-1, *x.shape[2:]) for x in (batch["audio"], batch["video"], slots == batch["tokens"].shape[1])]
    features = np.nan_to_num(quickly(cache, params, *clips))  # of clips that are all padding
    cached = {
        "features": features.reshape(len(slots), -1, features.shape[-1]),
        "frame_slot": slots.reshape(len(slots), -1),
    }
    plain = config.copy_and_resolve_references()
    plain.encoder.train = False
    without, learnt = experiment.load_experiment(plain).structure, {
        name: run.state.trainable[name] for name in ("llm", "projector")
    }  # fmt: skip
    np.testing.assert_allclose(
        quickly(lambda weights, batch: nnx.merge(run.exp.structure, *weights)(batch), weights, batch),
        quickly(lambda batch: nnx.merge(without, learnt, run.frozen)(batch), batch | cached),
        atol=1e-5,
    )


@pytest.fixture(scope="module")
def whole(media_folders, tmp_path_factory):
    """Config and work folder of 3 updates without a stop, the encoder frozen for 1, everything drawn that can be."""
    config, workdir = media_config(*media_folders), tmp_path_factory.mktemp("whole")
    config.updates, config.encoder.freeze_updates = 3, 1
    config.encoder.layer_drop, config.encoder.activation_dropout, config.encoder.batch_norm = 0.3, 0.1, "batch"
    config.data.augment.noise.probability, config.data.augment.drop_audio = 0.5, 0.3
    config.checkpoint.every, config.checkpoint.keep, config.log_every = 1, 4, 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(programs, "compiler_options", lambda mesh: QUICKLY)
        train.train(config, workdir)
    return config, workdir


@pytest.fixture(scope="module")
def states(whole):
    """The states of that run: at the start, and after each update."""
    config, workdir = whole
    exp = experiment.load_experiment(config)
    abstract = update.abstract_state(exp, make_optimizer(exp.settings.optimizer)[0])
    saved = [Checkpoints(workdir, 4).restore(step, abstract, None) for step in (1, 2, 3)]
    return [update.init_state(exp, make_optimizer(exp.settings.optimizer)[0]), *saved]


def test_a_frozen_encoder_waits_and_then_learns(states):
    first, frozen, learning, _ = states
    assert not any(changed(frozen.trainable["encoder"], first.trainable["encoder"]))
    # LoRA's b is zero at first, so that a does not move yet.
    assert sum(changed(frozen.trainable["llm"], first.trainable["llm"])) == 3
    assert int(adam(frozen, "others").count) == 1 and int(adam(frozen, "encoder").count) == 0
    assert not any(np.any(x) for x in jax.tree.leaves(adam(frozen, "encoder").mu))
    assert int(adam(learning, "others").count) == 2 and int(adam(learning, "encoder").count) == 1
    names = ["/".join(str(key.key) for key in path) for path, _ in
             jax.tree_util.tree_leaves_with_path(first.trainable["encoder"])]  # fmt: skip
    still = [name for name, moved in zip(
        names, changed(learning.trainable["encoder"], frozen.trainable["encoder"]), strict=True
    ) if not moved]  # fmt: skip
    # Softmax does not see what is added to all keys alike; rounding may or may not move it.
    assert set(still) <= {"blocks/k/bias"}


def test_the_first_update_of_the_encoder_is_adams_first_at_the_rate_of_all(whole, states):
    _, before, after, _ = states
    _, schedule = make_optimizer(read_settings(whole[0]).optimizer)
    moved = jax.tree.map(lambda a, b: np.abs(a - b), after.trainable["encoder"], before.trainable["encoder"])
    # Adam's first update is the learning rate, whatever the gradient, where that is well above eps.
    strong = jax.tree.map(lambda m, moment: m[np.abs(moment) > 1e-4], moved, adam(after, "encoder").mu["encoder"])
    sizes = np.concatenate([x.ravel() for x in jax.tree.leaves(strong)])
    assert len(sizes) > 1000
    np.testing.assert_allclose(sizes, float(schedule(1)), rtol=2e-2)


def test_when_the_encoder_learns(config):
    config.encoder.freeze_updates = 2
    settings = read_settings(config).optimizer
    others = ("projector", "lora", "ctc")  # the last, where there is one
    every = ("projector", "lora", "encoder", "ctc")
    assert [learning(settings, update) for update in (1, 2, 3)] == [others, others, every]
    config.encoder.train = False
    assert learning(read_settings(config).optimizer, 3) == others


def test_every_setting_of_the_encoder_changes_what_it_does_in_training(config):
    run = start(config)

    def loss(train_encoder=True, **settings):
        """The loss under these settings, and the statistics after it."""
        altered = config.copy_and_resolve_references()
        altered.encoder.update(settings)
        structure = experiment.load_experiment(altered).structure

        def of_batch(batch, *weights):
            model = nnx.merge(structure, *weights)
            logits = model(batch, jax.random.key(0), "none", train_encoder)
            stats = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
            return label_loss(logits, batch["targets"], batch["weights"])[0], stats

        value, stats = quickly(of_batch, run.batch, run.state.trainable, run.state.batch_stats, run.frozen)
        moved = changed(stats, run.state.batch_stats)
        assert all(moved) if settings.get("batch_norm") == "batch" else not any(moved)
        return float(value)

    found = {
        "plain": loss(),
        "layer_drop": loss(layer_drop=0.5),
        "activation_dropout": loss(activation_dropout=0.5),
        "batch_norm": loss(batch_norm="batch"),
    }
    assert len(set(found.values())) == len(found), found
    # A frozen encoder runs without dropout, but by its own statistics if told so.
    assert loss(False, layer_drop=0.5, activation_dropout=0.5) == found["plain"]
    assert loss(False, batch_norm="batch") == found["batch_norm"]


def test_a_frozen_encoder_averages_statistics_when_told_to(whole, states):
    first, frozen, *_ = states
    exp = experiment.load_experiment(whole[0])
    batch = next(pipeline.training_batches(exp.settings.data, exp.prompt))
    counts = {int(x) for x in jax.tree.leaves(frozen.batch_stats) if x.dtype == jnp.int32}
    before = {int(x) for x in jax.tree.leaves(first.batch_stats) if x.dtype == jnp.int32}
    assert before == {0} and counts == {int(batch["has_video"].any(-1).sum())}
    assert all(changed(frozen.batch_stats, first.batch_stats))


def test_a_run_that_is_stopped_on_either_side_of_the_switch_goes_on_bit_for_bit(whole, states, tmp_path, monkeypatch):
    config, workdir = whole[0].copy_and_resolve_references(), whole[1]
    monkeypatch.setattr(programs, "compiler_options", lambda mesh: QUICKLY)
    made, make = [], update.jit_train_step
    monkeypatch.setattr(update, "jit_train_step", lambda *args: made.append(args[-1]) or make(*args))
    for config.updates in (1, 2, 3):
        train.train(config, tmp_path)
    assert ["encoder" in parts for parts in made] == [
        False,
        True,
        True,
    ]  # programs that were compiled; the run without a stop needs two
    for step in (1, 2, 3):
        stopped = Checkpoints(tmp_path, 4).restore(step, states[step], None)
        jax.tree.map(np.testing.assert_array_equal, states[step], stopped)
    curves = [scalars(folder / "tensorboard") for folder in (workdir, tmp_path)]
    assert curves[0]["train/loss"] == curves[1]["train/loss"] and len(curves[0]["train/loss"]) == 3
    assert curves[0]["valid/accuracy"] == curves[1]["valid/accuracy"]


def test_evaluation_decodes_media_with_the_encoder_and_statistics_of_the_checkpoint(whole, monkeypatch):
    config, workdir = whole[0].copy_and_resolve_references(), whole[1]
    config.evaluate.names = ("av_clean", "audio_clean", "video_clean", "av_lost40", "av_lost40held")
    given = []
    decode = evaluate.decode_folder
    monkeypatch.setattr(
        evaluate,
        "decode_folder",
        lambda exp, decode_batch, *more: given.append(decode_batch) or decode(exp, decode_batch, *more),
    )
    scores = evaluate.evaluate(config, workdir)
    assert scores.keys() == set(config.evaluate.names) and all(row["clips"] == 5 for row in scores.values())
    # What is lost of the video, and how, reaches the encoder.
    (folder,) = (workdir / "evaluations").iterdir()
    found = {(folder / f"{name}.tsv").read_text() for name in ("av_clean", "av_lost40", "av_lost40held")}
    assert len(found) == 3
    exp = experiment.load_experiment(config)
    checkpoints = Checkpoints(workdir, 4)
    step = checkpoints.best_step()
    trainable, frozen = given[0].args
    jax.tree.map(np.testing.assert_array_equal, trainable, checkpoints.restore_trainable(step, exp.trainable))
    stats = checkpoints.restore_batch_stats(step, exp.batch_stats)["encoder"]
    jax.tree.map(np.testing.assert_array_equal, frozen["encoder"], stats)
    assert any(changed(stats, exp.load_encoder()[1]["encoder"]))


def test_a_checkpoint_with_an_encoder_is_not_taken_for_one_without(whole):
    config = whole[0].copy_and_resolve_references()
    config.encoder.train = False
    with pytest.raises(InputError, match="was trained with config.encoder.train True, not False"):
        check_fits(Checkpoints(whole[1], 4), 3, experiment.load_experiment(config).fits)


@pytest.mark.parametrize("settings, words", [
    ({"encoder.path": ""}, "config.encoder.path is not set"),
    ({"encoder.path": "/none"}, "/none/config.json: no such file"),
    ({"data.feature_width": 64}, "its encoder has width 32, expected 64 .config.data.feature_width"),
    ({"encoder.batch_norm": "group"}, "config.encoder.batch_norm is .group., expected running or batch"),
    ({"encoder.layer_drop": 1.0}, "config.encoder.layer_drop is 1.0, expected a number from 0 to less than 1"),
])  # fmt: skip
def test_wrong_settings(config, settings, words):
    config.update_from_flattened_dict(settings)
    with pytest.raises(InputError, match=words):
        experiment.load_experiment(config)


MESH = """
import json, sys
import jax, ml_collections, numpy as np
from viavsp_jax import train, update
from viavsp_jax.checkpoint import Checkpoints
from viavsp_jax.experiment import load_experiment
from viavsp_jax.runtime.throughput import Throughput

whole, work = sys.argv[1:]
config = ml_collections.ConfigDict(Checkpoints(whole).restore_config(1))
trainer = train.Trainer(load_experiment(config), work, Throughput())
trainer.update(2, first=True)
one, many = Checkpoints(whole).restore(2, trainer.state, None), trainer.state


def learnt(state):
    moments = state.opt_state.inner_states["encoder"].inner_state[0]
    return moments.mu, moments.nu, state.batch_stats


kernels = learnt(many)[0]["encoder"]["blocks"]["up"]["kernel"], many.trainable["encoder"]["blocks"]["up"]["kernel"]
print(len(jax.devices()), *(kernel.sharding.shard_shape(kernel.shape) for kernel in kernels))
for one, many in zip(*map(jax.device_get, (learnt(one), learnt(many))), strict=True):
    largest = max(np.abs(x).max() for x in jax.tree.leaves(one))
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
        # Where gradients cancel to nothing, as those of k's bias do, rounding is all there is.
        assert np.abs(x - y).max() <= 1e-5 * max(np.abs(x).max(), 1e-2 * largest), (x.shape, np.abs(x - y).max())
trainer.close()
"""


@pytest.mark.full
def test_devices_share_the_clips_and_the_moments(whole, states, tmp_path):
    """The first update of the encoder by two of them, from what one device had saved, is that device's own."""
    kernel = adam(states[2], "encoder").mu["encoder"]["blocks"]["up"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (3, 32, 48)
    shutil.copytree(whole[1] / "checkpoints" / "1", tmp_path / "checkpoints" / "1")
    command = [sys.executable, "-c", MESH, str(whole[1]), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=with_devices(2))
    assert not done.returncode, done.stderr[-3000:]
    assert done.stdout.strip() == "2 (3, 16, 48) (3, 32, 48)"
