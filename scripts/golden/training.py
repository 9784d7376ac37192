"""The recorded training: losses, learning rates, gradient norms and weights of every update."""

import ast
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from convert.checkpoints import read_moments
from convert.names import tensors
from scripts.golden.avhubert import unpacked
from scripts.golden.avsp import Model, Tree, all_positions, criterion, learnt, load_model, packed, record
from scripts.golden.decoding import Decoder
from scripts.golden.report import WHOLE, Golden, Row, close, exact, worst
from viavsp_jax.decode import DecodingConfig
from viavsp_jax.metrics import label_loss
from viavsp_jax.optimizer import make_optimizer, tri_stage
from viavsp_jax.state import TrainState
from viavsp_jax.train import make_train_step

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


def settings(recorded: dict[str, Any]) -> ml_collections.ConfigDict:
    """Our config for the recorded one."""
    b1, b2 = ast.literal_eval(recorded["optimizer"]["adam_betas"])
    schedule = recorded["lr_scheduler"]
    return ml_collections.ConfigDict({
        "seed": 0,
        "remat": "none",
        "label_smoothing": 0.0,
        "encoder": {"train": False},
        "optimizer": {
            "peak_lr": schedule["lr"][0],
            "warmup_updates": schedule["warmup_steps"],
            "hold_updates": schedule["hold_steps"],
            "decay_updates": schedule["decay_steps"],
            "b1": b1,
            "b2": b2,
            "eps": recorded["optimizer"]["adam_eps"],
        },
    })  # fmt: skip


def weight_row(what: str, ours: Tree, recorded: Tree) -> Row:
    """All learnt weights against the recorded ones."""
    pairs = zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(recorded), strict=True)
    return worst(what, [close(jax.tree_util.keystr(path), value, other, WHOLE) for (path, value), other in pairs])


def trace_checks(golden: Golden, model: Model) -> Iterator[Row]:
    """Trains as recorded, both clips in one packed row; the encoder's features are the recorded ones."""
    config = golden.json("train/encoder_eval_config.json")
    trace, final = (golden.arrays(f"train/encoder_eval_{name}.npz") for name in ("trace", "final"))
    micro = [record(golden, KIND, *name.removeprefix("sample").split("_")) for name in config["batches_per_update"]]
    batch, alone = packed(model, micro, 1), [all_positions(model, one) for one in micro]
    expected = [golden.arrays(f"avsp/{one['id']}.npz")["prev_output_tokens"][0] for one in micro]
    optimizer, schedule = make_optimizer(settings(config))
    train_step = jax.jit(make_train_step(model.structure, optimizer, settings(config)))
    state = TrainState(jnp.int32(0), model.trainable, optimizer.init(model.trainable))
    losses, norms, counts, rates = [], [], [], []
    for update in range(config["updates"]):
        pairs = zip(alone, expected, strict=True)
        counts.append([criterion(model.logits(one, state.trainable)[0], ids) for one, ids in pairs])
        before = adam(state).mu
        state, metrics = train_step(state, model.frozen, batch)
        losses.append(float(metrics.compute()["loss"]))
        norms.append(float(optax.global_norm(gradient(before, adam(state).mu, settings(config).optimizer.b1))))
        rates.append(float(schedule(update)))
        if update == 0:
            first = {name.removesuffix("@1"): final[name] for name in final if name.endswith("@1")}
            yield weight_row("weights after the first update", state.trainable, learnt(state.trainable, first))
    yield exact("updates recorded", [len(losses), len(micro)], trace["loss_micro"].shape)
    yield close("loss of every update", losses, trace["loss_micro"].mean(1), WHOLE)
    yield close("gradient norm of every update", norms, trace["gnorm"], WHOLE, relative=True)
    yield close("learning rate of every update", rates, trace["lr_used"], WHOLE, relative=True)
    yield close("learning rate after", schedule(config["updates"]), trace["lr_after_30"], WHOLE, relative=True)
    yield exact("criterion of every update", counts, trace["counts_micro"])
    recorded = learnt(state.trainable, {name: final[name] for name in final if "@" not in name})
    yield weight_row("weights after the last update", state.trainable, recorded)
    yield from moment_checks(golden, state)
    yield from after_checks(golden, model, recorded, micro)


def adam(state: TrainState) -> optax.ScaleByAdamState:
    """Adam's part of the optimizer state."""
    (found,) = (one for one in state.opt_state if isinstance(one, optax.ScaleByAdamState))
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
    """The schedule, and the trace with the encoder in eval mode."""
    yield from schedule_checks(golden)
    yield from trace_checks(golden, load_model(golden, KIND))
