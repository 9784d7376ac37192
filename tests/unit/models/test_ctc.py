"""The CTC head and its loss, against PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.torch import load_file

from convert.hub.ctc_viavsp import CTCHead as TorchHead
from convert.to_hf import write_ctc
from viavsp_jax.data.vocabulary import learn
from viavsp_jax.losses import label_loss, with_ctc
from viavsp_jax.models.ctc import CTCHead, ctc_loss

E, H, V, U = 6, 10, 9, 9


@pytest.fixture(scope="module")
def head():
    return CTCHead(E, H, V, nnx.Rngs(0))


def test_the_head_is_that_of_exports(head, tmp_path):
    """Frames behind the end of a clip count as what is before its first."""
    frames = np.random.default_rng(0).normal(size=(2, U, E)).astype(np.float32)
    padding = np.arange(U)[None] >= np.array([[U], [5]])
    logits = jax.jit(head)(frames, padding)
    units = learn(["một hai ba"], V)
    weights = nnx.to_pure_dict(nnx.state(head))
    write_ctc(tmp_path, jax.tree.map(np.asarray, weights), units)
    theirs = TorchHead(E, H, V)
    theirs.load_state_dict(load_file(tmp_path / "ctc.safetensors"))
    for clip, length in enumerate((U, 5)):
        found = jax.nn.log_softmax(logits[clip, :length])
        np.testing.assert_allclose(found, theirs.log_probs(torch.tensor(frames[clip, :length])), atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_the_loss_is_that_of_pytorch(seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(5, U, V)).astype(np.float32)
    lengths, counts = rng.integers(6, U + 1, 5), np.array([0, 1, 2, 3, 3])
    units = np.zeros((5, U), np.int32)
    for row, count in zip(units, counts, strict=True):
        row[:count] = rng.integers(1, V, count)
    units[4, :3] = 2, 2, 5  # a blank between equal ones
    padding = np.arange(U)[None] >= lengths[:, None]

    def loss(logits):
        losses, there = ctc_loss(logits, padding, units)
        return losses.sum(), (losses, there)

    (_, (losses, there)), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.array(logits))
    x = torch.tensor(logits, requires_grad=True)
    theirs = torch.nn.functional.ctc_loss(
        x.log_softmax(-1).transpose(0, 1), torch.tensor(units.astype(int)), torch.tensor(lengths), torch.tensor(counts),
        reduction="none",
    )  # fmt: skip
    theirs = torch.where(torch.tensor(counts) > 0, theirs / torch.tensor(counts).clamp(min=1), 0)
    theirs.sum().backward()
    np.testing.assert_allclose(losses, theirs.detach(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, x.grad, atol=1e-5)
    assert there.tolist() == [False, True, True, True, True]


def test_clips_without_units_do_not_count(head):
    """The loss is the mean over the others; without a head, nothing changes."""
    rng = np.random.default_rng(0)
    logits, padding = jnp.array(rng.normal(size=(4, U, V)), jnp.float32), np.zeros((4, U), bool)
    units = np.zeros((2, 2, U), np.int32)
    units[0, 0, :2], units[1, 1, :1] = (1, 2), 3
    text = label_loss(jnp.zeros((1, 2, 3)), jnp.zeros((1, 2), int), jnp.ones((1, 2)))
    loss, metrics = with_ctc(*text, (logits, padding), units, 0.5)
    losses, _ = ctc_loss(logits, padding, units.reshape(4, U))
    assert losses[1] == losses[2] == 0
    assert loss == pytest.approx(float(text[0] + 0.5 * (losses[0] + losses[3]) / 2), rel=1e-6)
    assert float(metrics.loss_ctc.count) == 2
    assert with_ctc(*text, None, None, 0.5)[0] == text[0]
