"""The update against its definition, and a run against the same run interrupted."""

import contextlib
import dataclasses
import functools
import gzip
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from small_run import WIDTH, small_config
from tensorboard_events import scalars

from viavsp_jax import evaluate, experiment, hypotheses, sharding, state, train, update
from viavsp_jax.aot import flops
from viavsp_jax.checkpoint import Checkpoints
from viavsp_jax.compatibility import check_fits
from viavsp_jax.data import pipeline, records
from viavsp_jax.decoding.decoder import Decoder
from viavsp_jax.evaluation.report.results import last_folder
from viavsp_jax.losses import label_loss, summarize
from viavsp_jax.optimizer import learning, make_optimizer
from viavsp_jax.run_settings import read_settings
from viavsp_jax.runtime.errors import InputError
from viavsp_jax.runtime.throughput import Throughput


@pytest.fixture
def config(folders):
    return small_config(*folders)


def loaded(config):
    """Experiment, trainable weights with adapters that matter, frozen weights, and one batch."""
    exp = experiment.load_experiment(config)
    rng = np.random.default_rng(0)
    trainable = jax.tree.map(lambda x: x + 0.05 * rng.normal(size=x.shape).astype(np.float32), exp.init_trainable())
    return exp, trainable, exp.load_frozen(), next(pipeline.training_batches(exp.settings.data, exp.prompt))


def test_what_learns_and_what_does_not(config):
    exp = experiment.load_experiment(config)
    names = {"/".join(str(key.key) for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(exp.trainable)}
    adapters = {f"llm/layers/{name}/lora/{matrix}" for name in "qkv" for matrix in "ab"}
    assert names == adapters | {"projector/kernel", "projector/bias"}
    frozen = jax.tree_util.tree_leaves_with_path(exp.frozen)
    assert len(frozen) == 12 and not any("lora" in str(path) for path, _ in frozen)


def test_packed_gradient_is_the_mean_over_single_utterances(config):
    config.lora.dropout = 0.0
    exp, trainable, frozen, batch = loaded(config)

    @jax.jit
    def gradient(batch):
        def loss(trainable):
            return label_loss(nnx.merge(exp.structure, trainable, frozen)(batch), batch["targets"], batch["weights"])[0]

        return jax.value_and_grad(loss)(trainable)

    loss, packed = gradient(batch)
    singles = []
    for row in range(len(batch["tokens"])):
        for segment in range(2, batch["segment_ids"][row].max() + 1):
            keep = np.isin(batch["segment_ids"], (1, segment))
            keep[np.arange(len(keep)) != row] = False
            owner = np.take_along_axis(batch["segment_ids"], batch["label_index"], 1)
            mine = (owner == segment) & (np.arange(len(keep)) == row)[:, None]
            single = batch | {
                "segment_ids": batch["segment_ids"] * keep,
                "weights": batch["weights"] * mine,
            }
            singles.append(gradient(single))
    assert len(singles) > 3
    np.testing.assert_allclose(loss, np.mean([one for one, _ in singles]), rtol=1e-5)
    mean = jax.tree.map(lambda *xs: np.mean(xs, 0), *[tree for _, tree in singles])
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(packed), jax.tree.leaves(mean), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max(), rtol=1e-4, err_msg=str(path))


def test_update_changes_everything_that_learns_and_donates_nothing_frozen(config):
    exp, trainable, frozen, batch = loaded(config)
    optimizer, _ = make_optimizer(read_settings(config).optimizer)
    before = jax.device_get((trainable, frozen))
    start = state.TrainState(jnp.int32(0), trainable, optimizer.init(trainable))
    step = jax.jit(update.make_train_step(exp.structure, optimizer, read_settings(config).training), donate_argnums=0)
    after, metrics = step(start, frozen, sharding.put_batch(exp.mesh, batch))
    assert int(after.step) == 1 and float(metrics.loss.count) > 3
    for a, b in zip(jax.tree.leaves(after.trainable), jax.tree.leaves(before[0]), strict=True):
        assert not np.array_equal(a, b) and np.isfinite(a).all()
    for a, b in zip(jax.tree.leaves(frozen), jax.tree.leaves(before[1]), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("part", ["projector", "lora"])
def test_a_part_learns_alone(config, part):
    config.train.parts, config.optimizer.name, config.optimizer.weight_decay = (part,), "adamw", 0.1
    exp, trainable, frozen, batch = loaded(config)
    settings = read_settings(config).optimizer
    optimizer, _ = make_optimizer(settings)
    start = state.TrainState(jnp.int32(0), trainable, optimizer.init(trainable))
    step = update.make_train_step(exp.structure, optimizer, exp.settings.training, learning(settings, 1))
    after, metrics = jax.jit(step)(start, frozen, batch)
    moved = {name: jax.tree.map(np.array_equal, trainable[name], after.trainable[name]) for name in trainable}
    kept = {name: {*jax.tree.leaves(equal)} for name, equal in moved.items()}
    assert kept == {"projector": {part == "lora"}, "llm": {part == "projector"}}
    # The norm is that of the moments, which were 0.
    norm = optax.tree.norm(after.opt_state[0].mu) / (1 - settings.b1)
    assert summarize([metrics])["gradient_norm"] == pytest.approx(float(norm), rel=1e-5)
    whole = update.make_train_step(exp.structure, optimizer, exp.settings.training)
    work = [flops.of_program(jax.make_jaxpr(one)(start, frozen, batch).jaxpr) for one in (step, whole)]
    assert work[0] == work[1], "as traced; what nobody asks for is left out by the compiler"
    less, more = (jax.jit(one).lower(start, frozen, batch).compile().cost_analysis()["flops"] for one in (step, whole))
    assert less < more


def test_an_update_in_several_passes_is_the_same_update(config):
    config.data.rows, config.lora.dropout = 4, 0.0
    exp, trainable, frozen, batch = loaded(config)
    batch["weights"][3] = 0  # a row without utterances
    optimizer, _ = make_optimizer(exp.settings.optimizer)
    start = state.TrainState(jnp.int32(0), trainable, optimizer.init(trainable))
    found = []
    for passes in (None, functools.partial(sharding.passes, exp.mesh, device_rows=2)):
        step = update.make_train_step(exp.structure, optimizer, exp.settings.training, passes=passes)
        after, metrics = jax.jit(step)(start, frozen, batch)
        found.append((after.opt_state[0], summarize([metrics])))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(a).max()), *(one for one, _ in found))
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-5)


def test_dropout_differs_from_pass_to_pass(config):
    config.data.rows, config.lora.dropout = 2, 0.5
    exp, trainable, frozen, batch = loaded(config)
    batch = {name: value[[0, 0]] for name, value in batch.items()}  # twice the same row
    optimizer, _ = make_optimizer(exp.settings.optimizer)
    start = state.TrainState(jnp.int32(0), trainable, optimizer.init(trainable))
    one = functools.partial(sharding.passes, exp.mesh, device_rows=1)
    steps = [update.make_train_step(exp.structure, optimizer, exp.settings.training, passes=x) for x in (None, one)]
    first = {name: value[:1] for name, value in batch.items()}
    alone, twice = (jax.jit(step)(start, frozen, rows)[0].opt_state[0].mu
                    for step, rows in ((steps[1], first), (steps[1], batch)))  # fmt: skip
    assert all(not np.allclose(a, b) for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(twice), strict=True))


def test_losses_by_modality(config):
    exp, trainable, frozen, batch = loaded(config)
    batch["modality"] = np.where(np.arange(batch["modality"].shape[1]) < 9, 0, 2)[None].repeat(2, 0)
    start, step = state.TrainState(jnp.int32(0), trainable, ()), update.jit_validation_step(exp)

    def scores(weights):
        return summarize([step(start, frozen, sharding.put_batch(exp.mesh, batch | {"weights": weights}))])

    found, first = scores(batch["weights"]), batch["weights"] * (batch["modality"] == 0)
    assert found["loss_av"] == pytest.approx(scores(first)["loss"], rel=1e-5)
    assert found["loss_video"] == pytest.approx(scores(batch["weights"] - first)["loss"], rel=1e-5)
    assert "loss_audio" not in found and found["loss_av"] != found["loss_video"]


def test_validation_in_every_dtype(config):
    losses = []
    for config.dtype in ("float32", "bfloat16"):
        exp, trainable, frozen, batch = loaded(config)
        start = state.TrainState(jnp.int32(0), trainable, ())
        metrics = update.jit_validation_step(exp)(start, frozen, sharding.put_batch(exp.mesh, batch))
        losses.append(summarize([metrics])["loss"])
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.01)
    assert losses[1] != losses[0]


def test_every_setting_of_the_update_changes_it(config):
    exp, trainable, frozen, batch = loaded(config)
    optimizer, _ = make_optimizer(read_settings(config).optimizer)
    start = state.TrainState(jnp.int32(0), trainable, optimizer.init(trainable))

    def moments(**settings):
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict(settings)
        structure = experiment.load_experiment(changed).structure
        step = jax.jit(update.make_train_step(structure, optimizer, read_settings(changed).training))
        after, _ = step(start, frozen, batch)
        return float(optax.tree.norm(after.opt_state[0].mu)), step, after

    norm, step, after = moments()
    assert float(optax.tree.norm(step(start, frozen, batch)[0].opt_state[0].mu)) == norm
    later = state.TrainState(jnp.int32(1), trainable, start.opt_state)
    assert float(optax.tree.norm(step(later, frozen, batch)[0].opt_state[0].mu)) != norm, "dropout varies by update"
    operations = []
    for remat in ("none", "elementwise", "layers"):
        changed = config.copy_and_resolve_references()
        changed.remat = remat
        step = update.make_train_step(exp.structure, optimizer, read_settings(changed).training)
        operations.append(flops.of_program(jax.make_jaxpr(step)(start, frozen, batch).jaxpr))
    # Attention's softmax needs a product to be computed again, and "layers" all of them.
    assert operations[0] < operations[1] < 1.1 * operations[0] < operations[2] < 1.4 * operations[0]
    norms = [norm] + [moments(**one)[0] for one in ({"label_smoothing": 0.2}, {"seed": 5}, {"lora.dropout": 0.0})]
    assert len(set(norms)) == len(norms)


@pytest.fixture(scope="module")
def whole(folders, tmp_path_factory):
    """Config and work folder of a run of 4 updates without a stop."""
    config, workdir = small_config(*folders), tmp_path_factory.mktemp("whole")
    config.checkpoint.every, config.checkpoint.keep, config.profile_steps = 1, 2, (2, 3)
    train.train(config, workdir)
    return config, workdir


def test_interrupted_run_equals_uninterrupted_one_bit_for_bit(whole, tmp_path):
    config, workdir = whole[0].copy_and_resolve_references(), whole[1]
    config.updates, config.profile_steps = 2, ()
    train.train(config, tmp_path)
    assert Checkpoints(tmp_path).latest_step() == 2
    config.updates = 4
    train.train(config, tmp_path)
    exp = experiment.load_experiment(config)
    for step in (3, 4):  # after 3 the training went on while it was being saved
        saved = (Checkpoints(folder, config.checkpoint.keep) for folder in (workdir, tmp_path))
        a, b = (checkpoints.restore_trainable(step, exp.trainable) for checkpoints in saved)
        jax.tree.map(np.testing.assert_array_equal, a, b)
    every = [scalars(folder / "tensorboard") for folder in (workdir, tmp_path)]
    curves = [{name: curve for name, curve in one.items() if name[:6] in ("train/", "valid/")} for one in every]
    assert curves[0] == curves[1] and set(curves[0]["valid/accuracy"]) == {1, 2, 3, 4}
    assert curves[0]["train/loss"][4] < curves[0]["train/loss"][2]
    assert not (tmp_path / "profile").exists()


def test_the_last_checkpoints_and_the_best_are_kept(whole):
    accuracy = scalars(whole[1] / "tensorboard")["valid/accuracy"]
    best = max(accuracy, key=lambda step: accuracy[step])
    assert {int(path.name) for path in (whole[1] / "checkpoints").iterdir()} == {3, 4, best}


def test_throughput_and_wall_time_are_written(whole):
    curves = scalars(whole[1] / "tensorboard")
    prefix = "throughput/"
    throughput = {name.removeprefix(prefix): curve for name, curve in curves.items() if name.startswith(prefix)}
    wall_time = [curve for name, curve in curves.items() if name.startswith("wall_time/")]
    assert len(wall_time) == 8 and all(set(curve) == {2, 4} for curve in [*throughput.values(), *wall_time])
    for step in (2, 4):
        assert sum(curve[step] for curve in wall_time) == pytest.approx(1, abs=1e-5)
        assert (
            0
            < throughput["step_seconds_p50"][step]
            <= throughput["step_seconds_p95"][step]
            <= throughput["step_seconds_max"][step]
        )
        # Two updates: their mean is their median.
        clips = 2 * curves["train/utterances_per_update"][step]
        seconds = clips / throughput["clips_per_second"][step]
        assert seconds == pytest.approx(2 * throughput["step_seconds_p50"][step], rel=1e-5)
    assert curves["wall_time/compile"][2] > 0 and curves["wall_time/validation"][4] > 0


@pytest.mark.parametrize(("changed", "message"), [
    ({"seed": 5}, "was saved with config.seed 0, not 5: continue with the same"),
    ({"data.train": ("audio_clean", "av_clean")}, "was saved with config.data.train .*'av_clean'.*, not .*'audio"),
    ({"data.compression": ("pool:2",)}, r"was saved with config.data.compression \['clusters'\], not \['pool:2'\]"),
    ({"data.rows": 4}, "was saved with config.data.rows 2, not 4"),
    ({"data.row.positions": 300, "data.row.labels": 90}, "config.data.row.positions 128, not 300, .*labels 40, not 90"),
    ({"llm.end_token": "<s>"}, "was trained with config.llm.end_token </s>, not <s>"),
    ({"prompt.instruction": "Write: "}, "was trained with config.prompt.instruction , not Write: "),
    ({"lora.alpha": 8.0}, "was trained with config.lora.alpha 32.0, not 8.0"),
])  # fmt: skip
def test_what_a_run_must_be_continued_with(whole, tmp_path, changed, message):
    config = whole[0].copy_and_resolve_references()
    shutil.copytree(whole[1] / "checkpoints", tmp_path / "checkpoints")
    shutil.copytree(config.data.path, tmp_path / "shards")
    shutil.copytree(tmp_path / "shards" / "av_clean", tmp_path / "shards" / "audio_clean")
    config.data.path, config.updates, config.profile_steps = str(tmp_path / "shards"), 6, ()
    config.update_from_flattened_dict(changed)
    with pytest.raises(InputError, match=message):
        train.train(config, tmp_path)
    assert Checkpoints(tmp_path).latest_step() == 4
    if "trained with" in message:  # and evaluated
        with pytest.raises(InputError, match=message):
            evaluate.evaluate(config, tmp_path)


def test_a_tokenizer_of_another_model_is_refused(whole, tmp_path):
    config = whole[0].copy_and_resolve_references()
    shutil.copytree(config.llm.path, tmp_path / "llm")
    config.llm.path = str(tmp_path / "llm")
    checkpoints, fits = Checkpoints(whole[1]), experiment.load_experiment(config).fits
    check_fits(checkpoints, 4, fits)
    tokenizer = json.loads((tmp_path / "llm" / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    *_, one, other = vocabulary
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    (tmp_path / "llm" / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(InputError, match="was trained with tokenizer and instruction sha256"):
        check_fits(checkpoints, 4, experiment.load_experiment(config).fits)


def test_evaluation_ends_a_text_at_every_end(whole, tmp_path, monkeypatch):
    config, given = whole[0].copy_and_resolve_references(), []
    shutil.copytree(whole[1] / "checkpoints", tmp_path / "checkpoints")
    shutil.copytree(config.llm.path, tmp_path / "llm")
    # Whatever is written first ends the text, but for the begin token, with which labels start.
    (tmp_path / "llm" / "generation_config.json").write_text(json.dumps({"eos_token_id": [*range(678)]}))
    config.llm.path, config.evaluate.decoding.num_beams = str(tmp_path / "llm"), 1

    def noted(*args):
        given.append(args[-1])
        return Decoder(*args)

    monkeypatch.setattr(hypotheses, "Decoder", noted)
    evaluate.evaluate(config, tmp_path)
    assert given == [(2, 0, *range(3, 678))]
    lines = (last_folder(tmp_path) / "av_clean.tsv").read_text().splitlines()
    column = lines[0].split("\t").index("hypothesis")
    assert {line.split("\t")[column] for line in lines[1:]} == {""}


def test_other_changes_are_shown(whole, tmp_path, capsys):
    config = whole[0].copy_and_resolve_references()
    shutil.copytree(whole[1] / "checkpoints", tmp_path / "checkpoints")
    config.updates, config.profile_steps, config.label_smoothing = 5, (), 0.1
    train.train(config, tmp_path)
    shown = capsys.readouterr().err
    for change in ("updates was 4, is 5", "label_smoothing was 0.0, is 0.1", "profile_steps was [2, 3], is []"):
        assert f"since update 4: config.{change}" in shown
    assert shown.count("since update 4: ") == 3 and Checkpoints(tmp_path).latest_step() == 5


def test_the_updates_asked_for_are_traced(whole):
    (path,) = (whole[1] / "profile").glob("plugins/profile/*/*.trace.json.gz")
    assert path.with_name(path.name.replace(".trace.json.gz", ".xplane.pb")).stat().st_size
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    assert {event["args"]["step_num"] for event in events if event.get("name") == "update"} == {"2", "3"}


def test_what_the_data_lack_is_found_before_anything_large_is_made(config, tmp_path, monkeypatch):
    """The validation split, for one: it is read after hours for the first time."""
    shards = shutil.copytree(f"{config.data.path}/av_clean", tmp_path / "shards" / "av_clean")
    config.data.path = str(tmp_path / "shards")
    monkeypatch.delattr(update, "init_state")
    config.data.row.frames = 9
    with pytest.raises(InputError, match="29 of 29 records do not fit a row: .*config.data.row.frames="):
        train.train(config, tmp_path / "work")
    assert len((tmp_path / "work" / "too_long.jsonl").read_text().splitlines()) == 29
    records.write_metadata(shards, WIDTH, ["test", "train"])
    with pytest.raises(InputError, match=r"av_clean: no split 'valid', expected one of \['test', 'train'\]"):
        train.train(config, tmp_path / "work")


def test_what_is_left_out_is_said(config, tmp_path, capsys):
    config.data.too_long, config.updates, config.checkpoint.every = "skip", 1, 1
    config.data.row.frames = 30
    train.train(config, tmp_path)
    left = len((tmp_path / "too_long.jsonl").read_text().splitlines())
    assert (
        0 < left < 29 and f"{left} records do not fit a row and are left out, see {tmp_path}" in capsys.readouterr().err
    )


@pytest.mark.parametrize("steps", [(3,), (3, 2), (0, 2), (3, 5), ("2:3",), (1, 2, 3)])
def test_updates_that_cannot_be_traced(config, tmp_path, steps):
    config.profile_steps = steps
    with pytest.raises(
        InputError, match="config.profile_steps (is .*the first and the last update|ends at 5, beyond config.updates=4)"
    ):
        train.train(config, tmp_path)


def test_a_loss_that_is_no_number_stops_the_run_and_is_not_saved(config, tmp_path):
    config.optimizer.peak_lr, config.log_every = 1e30, 100
    with pytest.raises(InputError, match="the loss is nan at update 2, expected a number: .* no checkpoint is saved"):
        train.train(config, tmp_path)
    assert Checkpoints(tmp_path).latest_step() is None


def test_a_loss_that_becomes_no_number_stops_the_run_at_the_next_log(whole, tmp_path):
    config = whole[0].copy_and_resolve_references()
    shutil.copytree(whole[1] / "checkpoints", tmp_path / "checkpoints")
    config.updates, config.checkpoint.every, config.log_every, config.profile_steps = 100, 100, 3, ()
    config.optimizer.peak_lr, config.optimizer.decay_updates = 1e30, 1000
    # The fifth update spoils the weights, the sixth finds out.
    with pytest.raises(InputError, match="the loss is nan at update 6, .* the last checkpoint is of update 4"):
        train.train(config, tmp_path)
    exp = experiment.load_experiment(config)
    kept, good = (Checkpoints(folder, 2).restore_trainable(4, exp.trainable) for folder in (tmp_path, whole[1]))
    jax.tree.map(np.testing.assert_array_equal, kept, good)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_stop_does_not_save_weights_that_are_no_numbers(folders, tmp_path, value):
    """The last update's own loss is still a number: it is that of the weights before."""
    config = small_config(*folders)
    with contextlib.closing(Throughput()) as throughput:
        trainer = train.Trainer(experiment.load_experiment(config), tmp_path, throughput)
        with contextlib.closing(trainer):
            leaves, tree = jax.tree.flatten(trainer.state.trainable)
            largest = max(np.abs(np.asarray(x)).max() for x in leaves)
            assert float(trainer.largest_weight(trainer.state.trainable)) == largest
            leaves[1] = leaves[1].at[(0,) * leaves[1].ndim].set(value)
            trainer.state = dataclasses.replace(trainer.state, trainable=jax.tree.unflatten(tree, leaves))
            with pytest.raises(InputError, match=f"the largest weight is {abs(value)} at update 3, expected a number"):
                trainer.save(3, preemption=None, stop=True)
    assert Checkpoints(tmp_path).latest_step() is None
