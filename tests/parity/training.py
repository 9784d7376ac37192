"""The recorded training: losses, learning rates, gradient norms and weights of every update."""

import ast
import dataclasses
import pathlib
import tempfile
from collections.abc import Generator, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs import base
from convert.checkpoints import read_moments
from convert.names import tensors
from tests.parity.avhubert import unpacked
from tests.parity.avsp import (
    Arrays,
    Model,
    Tree,
    all_positions,
    criterion,
    learnt,
    load_model,
    others,
    packed,
    record,
)
from tests.parity.decoding import Decoder
from tests.parity.rows import WHOLE, Golden, Row, close, exact, jit, worst
from viavsp_jax.decoding.search import DecodingConfig
from viavsp_jax.losses import label_loss
from viavsp_jax.optimizer import OptimizerSettings, make_optimizer, tri_stage
from viavsp_jax.run_settings import TrainingSettings, read_settings
from viavsp_jax.state import TrainState
from viavsp_jax.update import make_train_step

KIND = "gqa"


def schedule_checks(golden: Golden) -> Iterator[Row]:
    """Learning rates by update of the recorded settings."""
    for name, table in golden.json("train/tri_stage_table.json").items():
        schedule = tri_stage(
            table["peak"], table["warmup"], table["hold"], table["decay"],
            table["init_lr_scale"], table["final_lr_scale"],
        )  # fmt: skip
        rates = {int(update): rate for update, rate in table["lr_by_num_updates"].items()}
        found = [schedule(update) / table["peak"] for update in rates]
        yield close(f"learning rates of {name}, in peaks", found, np.array([*rates.values()]) / table["peak"], WHOLE)


def settings(recorded: dict[str, Any], encoder: bool) -> tuple[OptimizerSettings, TrainingSettings]:
    """Ours for the recorded ones; with the encoder in the model, which stays frozen, if so told."""
    b1, b2 = ast.literal_eval(recorded["optimizer"]["adam_betas"])
    schedule = recorded["lr_scheduler"]
    optimizer = dataclasses.replace(
        read_settings(base.get_config()).optimizer,
        peak_lr=schedule["lr"][0],
        warmup_updates=schedule["warmup_steps"],
        hold_updates=schedule["hold_steps"],
        decay_updates=schedule["decay_steps"],
        b1=b1,
        b2=b2,
        eps=recorded["optimizer"]["adam_eps"],
        train_encoder=encoder,
        freeze_updates=recorded["updates"],
    )
    return optimizer, dataclasses.replace(read_settings(base.get_config()).training, remat="none")


def weight_row(what: str, state: TrainState, recorded: Mapping[str, np.ndarray]) -> Row:
    """All adapters and the projector against the recorded ones."""
    ours = others(state.trainable)
    pairs = zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(learnt(ours, recorded)), strict=True)
    return worst(what, [close(jax.tree_util.keystr(path), value, other, WHOLE) for (path, value), other in pairs])


def micro_batches(golden: Golden, run: str) -> list[Arrays]:
    """The utterances of every update of a recorded run, in its order."""
    names = golden.json(f"train/{run}_config.json")["batches_per_update"]
    return [record(golden, KIND, *name.removeprefix("sample").split("_")) for name in names]


def trace_checks(
    golden: Golden, run: str, model: Model, batch: Arrays, reader: Model, micro: list[Arrays]
) -> Generator[Row, None, TrainState]:
    """Trains as recorded.

    Args:
      run: the recorded one.
      model, batch: what is trained, and on what: all clips of an update in one packed row.
      reader: the model without an encoder.
      micro: the clips, with the features that training has of them: what the reference's criterion judges.

    Returns:
      The state after the last update.
    """
    recorded = golden.json(f"train/{run}_config.json")
    trace, final = (golden.arrays(f"train/{run}_{name}.npz") for name in ("trace", "final"))
    alone = [all_positions(reader, one) for one in micro]
    expected = [golden.arrays(f"avsp/{one['id']}.npz")["prev_output_tokens"][0] for one in micro]
    of_optimizer, of_training = settings(recorded, encoder="encoder" in model.trainable)
    optimizer, schedule = make_optimizer(of_optimizer)
    train_step = jit(make_train_step(model.structure, optimizer, of_training))
    frozen = dict(model.frozen)
    batch_stats = {name: frozen.pop(name) for name in model.frozen if name == "encoder"}
    state = TrainState(jnp.int32(0), model.trainable, optimizer.init(model.trainable), batch_stats)
    losses, norms, counts, rates = [], [], [], []
    for update in range(recorded["updates"]):
        adapters, pairs = others(state.trainable), zip(alone, expected, strict=True)
        counts.append([criterion(reader.logits(one, adapters)[0], ids) for one, ids in pairs])
        before = adam(state).mu
        state, metrics = train_step(state, frozen, batch)
        losses.append(float(metrics.loss.compute()))
        norms.append(float(optax.global_norm(gradient(before, adam(state).mu, of_optimizer.b1))))
        rates.append(float(schedule(update)))
        if update == 0:
            first = {name.removesuffix("@1"): final[name] for name in final if name.endswith("@1")}
            yield weight_row(f"{run}: weights after the first update", state, first)
    yield exact(f"{run}: updates recorded", [len(losses), len(micro)], trace["loss_micro"].shape)
    yield close(f"{run}: loss of every update", losses, trace["loss_micro"].mean(1), WHOLE)
    yield close(f"{run}: gradient norm of every update", norms, trace["gnorm"], WHOLE, relative=True)
    yield close(f"{run}: learning rate of every update", rates, trace["lr_used"], WHOLE, relative=True)
    after = schedule(recorded["updates"])
    yield close(f"{run}: learning rate after", after, trace["lr_after_30"], WHOLE, relative=True)
    yield exact(f"{run}: criterion of every update", counts, trace["counts_micro"])
    yield weight_row(f"{run}: weights after the last update", state, last_weights(golden, run))
    return state


def last_weights(golden: Golden, run: str) -> Mapping[str, np.ndarray]:
    """The learnt weights after the last update, by the reference's names."""
    final = golden.arrays(f"train/{run}_final.npz")
    return {name: final[name] for name in final if "@" not in name}


def adam(state: TrainState) -> optax.ScaleByAdamState:
    """Adam's part of the optimizer state; not the encoder's own, which waits."""
    found = state.opt_state
    if isinstance(found, optax.PartitionState):
        found = found.inner_states["others"].inner_state
    (found,) = (one for one in found if isinstance(one, optax.ScaleByAdamState))
    return found


def moment_checks(golden: Golden, state: TrainState) -> Iterator[Row]:
    """Adam's moments after the last update, which the recorded checkpoint holds."""
    with tempfile.TemporaryDirectory() as folder:
        best = unpacked(golden, f"avsp/checkpoint_best_{KIND}.pt.xz", pathlib.Path(folder))
        recorded = read_moments(best, [tensor.reference_name for tensor in tensors(state.trainable)])
    for what, ours, theirs in (
        ("first", adam(state).mu, recorded.exp_avg),
        ("second", adam(state).nu, recorded.exp_avg_sq),
    ):
        theirs = learnt(ours, {name: value.numpy() for name, value in theirs.items()})
        pairs = zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True)
        rows = [direction(jax.tree_util.keystr(path), value, other) for (path, value), other in pairs]
        yield worst(f"Adam's {what} moments after the last update, directions and lengths", rows)
    yield exact("Adam's count", adam(state).count, recorded.step)


def gradient(before: Tree, after: Tree, b1: float) -> Tree:
    """What moved Adam's first moments."""
    return jax.tree.map(lambda old, new: (new - b1 * old) / (1 - b1), before, after)


def direction(what: str, ours: np.ndarray, recorded: np.ndarray) -> Row:
    """How far a cosine and a ratio of lengths are from 1: moments cancel, so single ones are mostly noise."""
    x, y = (np.asarray(value, np.float64).ravel() for value in (ours, recorded))
    lengths = np.linalg.norm(x), np.linalg.norm(y)
    return close(what, [x @ y / np.prod(lengths), lengths[0] / lengths[1]], [1, 1], WHOLE)


def after_checks(golden: Golden, model: Model, trainable: Tree, micro: list[Tree]) -> Iterator[Row]:
    """What the model says of the clips it was trained on, with the recorded weights of the end."""
    arrays, info = golden.arrays("train/encoder_eval_after.npz"), golden.json("train/encoder_eval_after.json")
    decoder = Decoder(model)
    for utterance in micro:
        name = utterance["id"].removeprefix(f"{KIND}_").split("_")[0]
        logits = model.logits(all_positions(model, utterance), trainable)[0]
        yield close(f"trained, {name} logits", logits, arrays[f"{name}_logits"][0], WHOLE)
        one = packed(model, [utterance], 1)
        loss = float(label_loss(model.logits(one, trainable), one["targets"], one["weights"])[0])
        yield close(f"trained, {name} loss", [loss] * 2, [arrays[f"{name}_loss"], info[name]["loss"]], WHOLE)
        ids = golden.arrays(f"avsp/{utterance['id']}.npz")["prev_output_tokens"][0]
        numbers = [info[name][key] for key in ("n_correct", "acc_total", "n_error", "wer_total")]
        yield exact(f"trained, {name} criterion", criterion(logits, ids), numbers)
        yield from decode_checks(golden, decoder, trainable, utterance, name, info[name]["decode"])


def decode_checks(
    golden: Golden, decoder: Decoder, trainable: Tree, utterance: Tree, name: str, decodes: dict[str, Any]
) -> Iterator[Row]:
    """What the trained model writes, greedily and with beams."""
    prefix = golden.json(f"avsp/{KIND}_info.json")[utterance["id"].removeprefix(f"{KIND}_")]["prefix_len"]
    room = golden.json(f"avsp/{KIND}_{name}_decode.json")["max_new_tokens_effective"]
    embedded = decoder.model.run(trainable, all_positions(decoder.model, utterance))[1]
    for run, recorded in decodes.items():
        config = DecodingConfig(max_new_tokens=room, num_beams=int(run.removeprefix("beam")))
        hypotheses, scores = decoder(embedded[0, :prefix], config, trainable)
        yield worst(f"trained, {name} {run}", [
            exact("ids", hypotheses[0], recorded["tokens"]),
            exact("text", decoder.model.prompt.text(hypotheses[0]), recorded["text"].strip()),
            *([close("score", scores[:1], [recorded["score"]], WHOLE)] if "score" in recorded else []),
        ])  # fmt: skip


def checks(golden: Golden) -> Iterator[Row]:
    """The schedule, and the run with the encoder in evaluation mode, whose features are the recorded ones."""
    yield from schedule_checks(golden)
    model, run = load_model(golden, KIND), "encoder_eval"
    micro = micro_batches(golden, run)
    state = yield from trace_checks(golden, run, model, packed(model, micro, 1), model, micro)
    yield from moment_checks(golden, state)
    yield from after_checks(golden, model, learnt(state.trainable, last_weights(golden, run)), micro)
