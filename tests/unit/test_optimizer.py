"""The schedule against the formula of the reference, Adam against torch's; the other ones against their peers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers

from configs import base, final
from viavsp_jax.optimizer import make_optimizer, scale_by_adam, tri_stage
from viavsp_jax.run_settings import read_settings


def reference_rate(update, peak, warmup, hold, decay):
    """Warm-up, hold and decay, written out."""
    if update < warmup:
        return peak * (0.01 + 0.99 * update / warmup)
    if update < warmup + hold:
        return peak
    if update <= warmup + hold + decay:
        return peak * np.exp(np.log(0.05) * (update - warmup - hold) / decay)
    return peak * 0.05


@pytest.mark.parametrize(("warmup", "hold", "decay"), [(10_000, 0, 20_000), (100, 50, 200), (1, 0, 3)])
def test_tri_stage(warmup, hold, decay):
    schedule = tri_stage(5e-4, warmup, hold, decay)
    end = warmup + hold + decay
    for update in {0, 1, warmup // 2, warmup, warmup + hold, warmup + hold + decay // 2, end, end + 10}:
        expected = reference_rate(update, 5e-4, warmup, hold, decay)
        np.testing.assert_allclose(schedule(update), expected, rtol=2e-5, err_msg=str(update))


def test_optimizer_follows_torch_adam():
    config = base.get_config()
    config.optimizer.update({"peak_lr": 0.01, "warmup_updates": 4, "decay_updates": 6})
    optimizer, schedule = make_optimizer(read_settings(config).optimizer)
    rng = np.random.default_rng(0)
    start = rng.normal(size=5).astype(np.float32)
    weights, peer = jnp.asarray(start), torch.tensor(start, requires_grad=True)
    adam = torch.optim.Adam([peer], betas=(0.9, 0.98), eps=1e-8)
    state = optimizer.init(weights)
    for update in range(12):
        gradient = rng.normal(size=5).astype(np.float32)
        changes, state = optimizer.update(jnp.asarray(gradient), state, weights)
        weights = optax.apply_updates(weights, changes)
        adam.param_groups[0]["lr"] = float(schedule(update))
        peer.grad = torch.tensor(gradient)
        adam.step()
    np.testing.assert_allclose(weights, peer.detach().numpy(), atol=1e-6)
    assert np.abs(weights - start).max() > 0.01


def test_adam_adds_eps_before_the_bias_correction():
    """fairseq's formula, written out, with an eps that matters."""
    rng, b1, b2, eps = np.random.default_rng(1), 0.9, 0.98, 0.05
    optimizer = scale_by_adam(b1, b2, eps)
    state, m, v = optimizer.init(jnp.zeros(6)), np.zeros(6), np.zeros(6)
    for update in range(1, 5):
        gradient = rng.normal(size=6)
        changes, state = optimizer.update(jnp.asarray(gradient, jnp.float32), state)
        m, v = b1 * m + (1 - b1) * gradient, b2 * v + (1 - b2) * gradient**2
        expected = m * np.sqrt(1 - b2**update) / (1 - b1**update) / (np.sqrt(v) + eps)
        np.testing.assert_allclose(changes, expected, rtol=1e-5)
        np.testing.assert_allclose(state.nu, v, rtol=1e-5)
        assert state.count == update


def test_recipes_keep_the_references_numbers():
    reference = final.get_config("reference")
    assert (reference.updates, reference.data.rows, reference.data.row.clips) == (300_000, 1, 8)
    ours = read_settings(reference).optimizer
    assert (ours.warmup_updates, ours.decay_updates, ours.freeze_updates) == (100_000, 200_000, 10_000)
    assert reference.optimizer.peak_lr == base.get_config().optimizer.peak_lr == 5e-4
    scaled = final.get_config()
    assert scaled.updates * final.CLIPS_PER_UPDATE == reference.updates * 8
    ours = read_settings(scaled).optimizer
    assert ours.warmup_updates + ours.decay_updates == scaled.updates


def settings(**changed):
    """Those of a config with these settings of config.optimizer, for 100 updates."""
    config = base.get_config()
    config.updates = 100
    config.optimizer.update({"peak_lr": 0.01, "warmup_updates": 0.1, "decay_updates": 0.9} | changed)
    return read_settings(config).optimizer


def test_lengths_are_updates_or_shares_of_all():
    ours = settings(hold_updates=0.25, decay_updates=30)
    assert (ours.warmup_updates, ours.hold_updates, ours.decay_updates) == (10, 25, 30)
    assert settings(decay_updates=1.0).decay_updates == 100


def test_cosine_follows_transformers_behind_the_warm_up():
    _, schedule = make_optimizer(settings(schedule="cosine"))
    peer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.01)
    theirs = transformers.get_cosine_schedule_with_warmup(peer, 10, 100)
    for update in range(120):
        if 10 <= update <= 100:
            np.testing.assert_allclose(schedule(update), theirs.get_last_lr()[0], rtol=1e-4, atol=1e-8)
        peer.step()
        theirs.step()
    assert schedule(0) == pytest.approx(1e-4, rel=1e-5)
    assert schedule(5) == pytest.approx(0.01 * (0.01 + 0.99 / 2), rel=1e-5)
    assert schedule(110) == 0


def test_constant_stays_at_the_peak():
    _, schedule = make_optimizer(settings(schedule="constant"))
    assert schedule(5) < schedule(10) == schedule(99) == schedule(1000) == pytest.approx(0.01)


def test_the_encoder_has_the_rate_of_all_others_whenever_it_begins_to_learn():
    config = base.get_config()
    config.encoder.train = True
    config.optimizer.update({"warmup_updates": 2, "decay_updates": 20})
    weights = {name: {"w": jnp.zeros(3)} for name in ("encoder", "llm")}
    gradients = jax.tree.map(jnp.ones_like, weights)
    optimizer, schedule = make_optimizer(read_settings(config).optimizer)
    state = optimizer.init(weights)
    for step in range(8):  # it learns from the sixth update on, whatever config.encoder.freeze_updates says
        changes, state = optimizer.update(gradients, state, weights, train_encoder=step > 4, step=jnp.int32(step))
    # Adam's updates for gradients that are always 1 have the size of the rate.
    np.testing.assert_allclose(changes["llm"]["w"], -float(schedule(7)), rtol=1e-4)
    np.testing.assert_allclose(changes["encoder"]["w"], -float(schedule(7)), rtol=1e-4)


def test_adamw_and_clipping_follow_torch():
    changed = {"name": "adamw", "weight_decay": 0.1, "clip_norm": 0.5, "schedule": "constant", "warmup_updates": 0}
    optimizer, schedule = make_optimizer(settings(**changed))
    rng = np.random.default_rng(0)
    start = [rng.normal(size=size).astype(np.float32) for size in (5, 3)]
    weights, peers = [*map(jnp.asarray, start)], [torch.tensor(x, requires_grad=True) for x in start]
    adam, norms = torch.optim.AdamW(peers, lr=0.01, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.1), []
    state = optimizer.init(weights)
    for update in range(12):
        gradients = [rng.normal(size=len(x)).astype(np.float32) * update / 20 for x in start]
        changes, state = optimizer.update([*map(jnp.asarray, gradients)], state, weights)
        weights = optax.apply_updates(weights, changes)
        for peer, gradient in zip(peers, gradients, strict=True):
            peer.grad = torch.tensor(gradient)
        norms.append(float(torch.nn.utils.clip_grad_norm_(peers, 0.5)))
        adam.step()
    assert min(norms) < 0.5 < max(norms)
    for ours, peer in zip(weights, peers, strict=True):
        np.testing.assert_allclose(ours, peer.detach().numpy(), atol=2e-6)
    plain = make_optimizer(settings())[0].init(weights)
    assert jax.tree.structure(plain) == jax.tree.structure(state), "a run may go on with others"
