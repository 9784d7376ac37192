"""The loss against torch's cross-entropy, utterance by utterance."""

import jax.numpy as jnp
import numpy as np
import torch
from tensorboard_events import scalars

from viavsp_jax.losses import label_loss, summarize
from viavsp_jax.runtime.tensorboard import Writer


def packed(lengths, vocabulary=11, size=20, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(1, size, vocabulary)).astype(np.float32) * 3
    targets = rng.integers(0, vocabulary, (1, size)).astype(np.int32)
    weights = np.zeros((1, size), np.float32)
    weights[0, : sum(lengths)] = np.concatenate([np.full(n, 1 / n) for n in lengths])
    return logits, targets, weights


def test_loss_is_the_mean_of_the_utterances_means():
    lengths = (3, 9, 5)
    logits, targets, weights = packed(lengths)
    loss, metrics = label_loss(*map(jnp.asarray, (logits, targets, weights)))
    start, expected, correct = 0, [], 0
    for length in lengths:
        part = slice(start, start + length)
        expected.append(
            torch.nn.functional.cross_entropy(torch.tensor(logits[0, part]), torch.tensor(targets[0, part]).long())
        )
        correct += (logits[0, part].argmax(-1) == targets[0, part]).sum()
        start += length
    np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-5)
    values = summarize([metrics])
    np.testing.assert_allclose(values["loss"], np.mean(expected), rtol=1e-5)
    np.testing.assert_allclose(values["accuracy"], correct / sum(lengths), rtol=1e-6)


def test_merged_metrics_weigh_batches_by_what_they_hold():
    parts = [label_loss(*map(jnp.asarray, packed(lengths, seed=i)))[1] for i, lengths in enumerate([(2,), (4, 8, 3)])]
    merged = summarize(parts)
    losses = [summarize([part])["loss"] for part in parts]
    np.testing.assert_allclose(merged["loss"], (losses[0] + 3 * losses[1]) / 4, rtol=1e-5)
    assert merged.keys() == {"loss", "accuracy"}, "of nothing there is no mean"


def test_label_smoothing_equals_torch():
    logits, targets, weights = packed((7,))
    loss, metrics = label_loss(*map(jnp.asarray, (logits, targets, weights)), smoothing=0.1)
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(logits[0, :7]), torch.tensor(targets[0, :7]).long(), label_smoothing=0.1
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert abs(float(summarize([metrics])["loss"]) - float(loss)) > 1e-3, "the reported loss is without smoothing"


def test_an_empty_batch_is_no_nan():
    logits, targets, _ = packed((1,))
    loss, _ = label_loss(jnp.asarray(logits), jnp.asarray(targets), jnp.zeros((1, 20)))
    assert float(loss) == 0


def test_writer_writes_curves_tensorboard_reads(tmp_path):
    writer = Writer(tmp_path, {})
    writer.write(1, {"train/loss": 2.5})
    writer.write(2, {"train/loss": 1.5, "valid/accuracy": 0.25})
    writer.close()
    assert scalars(tmp_path / "tensorboard") == {"train/loss": {1: 2.5, 2: 1.5}, "valid/accuracy": {2: 0.25}}
