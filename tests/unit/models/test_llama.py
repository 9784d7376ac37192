"""The language model against transformers' LlamaForCausalLM, float32; theta, eps and head width off the defaults."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from llama_pairs import HEAD_DIM, HEADS, LAYERS, MODULE, WHOLE, WIDTH, Pair, draw, make_pair, split

from viavsp_jax.models.attention import WHOLE_ROWS
from viavsp_jax.models.cache import compact
from viavsp_jax.models.rope import RopeScaling, rotate


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("llama"))


RELATIVES = {"llama": None, "qwen3": "qwen3, biases and windows", "gemma 3": "gemma 3"}


@pytest.fixture(scope="module", params=RELATIVES)
def relative(request, tmp_path_factory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("relative"), kind=RELATIVES[request.param])


def hidden(model, tokens, segment_ids=None, positions=None):
    """Hidden states of packed rows of token ids, jitted."""
    graph, params = split(model)
    segment_ids = np.ones_like(tokens) if segment_ids is None else segment_ids
    positions = np.tile(np.arange(tokens.shape[1]), (len(tokens), 1)) if positions is None else positions

    @jax.jit
    def run(params, tokens, segment_ids, positions):
        model = nnx.merge(graph, params)
        return model(model.embed(tokens), segment_ids, positions, None, "none")

    return run(params, tokens, segment_ids, positions)


def their_logits(model, tokens):
    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.numpy()


def test_config_is_off_the_defaults(pair):
    config = pair.ours.config
    assert (config.rope_theta, config.rms_norm_eps, config.head_dim) == (37.0, 3e-3, HEAD_DIM)
    assert config.head_dim != config.hidden_size // config.num_heads


@pytest.mark.parametrize("kv_heads, tied", [(1, True), (2, False), (4, False), (2, True)])
def test_every_stage_equals_transformers(tmp_path, kv_heads, tied):
    pair, tokens = make_pair(tmp_path, kv_heads, tied), draw((2, 9))
    blocks = []
    for layer in pair.theirs.model.layers:
        layer.register_forward_hook(lambda _, __, out: blocks.append(out[0] if isinstance(out, tuple) else out))
    logits = their_logits(pair.theirs, tokens)

    x = pair.ours.embed(tokens)
    np.testing.assert_array_equal(x, pair.theirs.model.embed_tokens(torch.tensor(tokens)).detach())
    graph, params = split(pair.ours.layers)
    positions, ids = np.tile(np.arange(9), (2, 1)), jnp.ones((2, 9), int)
    turning = RopeScaling().table(positions, 37.0, HEAD_DIM, jnp.float32)

    def attention(q, k, v):
        return WHOLE_ROWS(q, k, v, turning, ids, positions), None

    block = jax.jit(lambda params, x: nnx.merge(graph, params)(x, attention)[0])
    assert len(blocks) == LAYERS
    for i in range(LAYERS):
        theirs_in = x if i == 0 else blocks[i - 1].numpy()
        out = block(jax.tree.map(lambda p, i=i: p[i], params), theirs_in)
        np.testing.assert_allclose(out, blocks[i].numpy(), atol=MODULE, rtol=MODULE)
    np.testing.assert_allclose(pair.ours.logits(blocks[-1].numpy()), logits, atol=MODULE, rtol=MODULE)
    np.testing.assert_allclose(pair.ours.logits(hidden(pair.ours, tokens)), logits, atol=WHOLE, rtol=WHOLE)


def test_rotation_equals_transformers(pair):
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    x = np.random.default_rng(0).normal(size=(2, 6, HEADS, HEAD_DIM)).astype(np.float32)
    positions = draw((2, 6)) * 7
    cos, sin = pair.theirs.model.rotary_emb(torch.tensor(x), torch.tensor(positions))
    q = torch.tensor(x).transpose(1, 2)
    theirs = apply_rotary_pos_emb(q, q, cos, sin)[0].transpose(1, 2)
    ours = rotate(jnp.array(x), RopeScaling().table(positions, 37.0, HEAD_DIM, jnp.float32))
    np.testing.assert_allclose(ours, theirs, atol=2e-5)  # angles up to 420 radians


def packed():
    """Three utterances of 4, 7 and 5 tokens in two rows of 13, the rest padding."""
    utterances = [draw(size, seed) for seed, size in enumerate((4, 7, 5))]
    tokens, segment_ids, positions = (np.zeros((2, 13), int) for _ in range(3))
    places = [(0, 0, 1), (0, 4, 2), (1, 0, 1)]
    for utterance, (row, start, segment) in zip(utterances, places, strict=True):
        here = (row, slice(start, start + len(utterance)))
        tokens[here], segment_ids[here], positions[here] = utterance, segment, np.arange(len(utterance))
    return utterances, places, (tokens, segment_ids, positions)


def test_packed_rows_equal_each_utterance_alone(relative):
    utterances, places, rows = packed()
    logits = relative.ours.logits(hidden(relative.ours, *rows))
    for utterance, (row, start, _) in zip(utterances, places, strict=True):
        alone = their_logits(relative.theirs, utterance[None])[0]
        np.testing.assert_allclose(logits[row, start : start + len(utterance)], alone, atol=WHOLE, rtol=WHOLE)


def test_padding_is_ignored_and_finite(pair):
    _, _, (tokens, segment_ids, positions) = packed()
    noisy = np.where(segment_ids == 0, draw(tokens.shape, 9), tokens)
    assert (noisy != tokens).any()
    first, second = (hidden(pair.ours, t, segment_ids, positions) for t in (tokens, noisy))
    np.testing.assert_array_equal(first[segment_ids > 0], second[segment_ids > 0])
    assert np.isfinite(first).all()


def test_prefill_and_extend_equal_the_full_forward(relative):
    """Three beams a row that fork: at every step each goes on from any, whatever it was.

    The cache is full after 3 tokens; what is still seen of it then moves into another one.
    """
    lengths, room, beams, rng = np.array([3, 6, 5]), 3, 3, np.random.default_rng(0)
    moves = []
    prompts = draw((3, 6))
    graph, params = split(relative.ours)

    @jax.jit
    def prefill(params, prompts, lengths):
        model = nnx.merge(graph, params)
        return model.prefill(model.embed(prompts), lengths, room, beams)

    extend = jax.jit(lambda params, *inputs: nnx.merge(graph, params).extend(*inputs))
    logits, cache = prefill(params, prompts, lengths)
    texts = [[list(row[:n])] * beams for row, n in zip(prompts, lengths, strict=True)]
    for row, (text, *_) in enumerate(texts):
        np.testing.assert_allclose(logits[row], their_logits(relative.theirs, [text])[0, -1], atol=WHOLE, rtol=WHOLE)
    for step in range(11):
        if int(cache.free) == 0:
            moves.append(np.asarray(cache.visible).any(1).sum(1))
            assert int(cache.live_slots) == moves[-1].max()
            cache = compact(cache, size=moves[-1].max() + 4 * beams)
            assert int(cache.free) == 4
        tokens, parents = draw((3, beams), step), rng.integers(0, beams, (3, beams))
        logits, cache = extend(params, tokens, parents, cache)
        texts = [[text[parents[b, m]] + [tokens[b, m]] for m in range(beams)] for b, text in enumerate(texts)]
        expected = np.stack([their_logits(relative.theirs, text)[:, -1] for text in texts])
        np.testing.assert_allclose(logits, expected, atol=WHOLE, rtol=WHOLE)
    assert np.ptp(moves, 1).any()  # not as many places are left in every row
    assert int(cache.steps) == 11 and max(map(max, moves)) < 7 * beams


@pytest.mark.parametrize("relative", [
    "llama", pytest.param("qwen3", marks=pytest.mark.full), "gemma 3"
], indirect=True)  # fmt: skip
def test_remat_keeps_the_gradients(relative):
    """Also under adapter dropout: the recomputation must draw the same mask."""
    _, _, (tokens, segment_ids, positions) = packed()
    graph, params = split(relative.ours)
    for layer in params["layers"].values():
        for name, value in layer.get("lora", {}).items():
            layer["lora"][name] = np.random.default_rng(1).normal(size=value.shape) * 0.1

    def loss(params, remat):
        model = nnx.merge(graph, params)
        key = jax.random.key(0, impl="rbg")  # compiles faster
        x = model(model.embed(tokens), segment_ids, positions, key, remat)
        return jnp.mean(model.logits(x) ** 2)

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    kept = jax.device_get(gradient(params, "none"))
    assert all(np.abs(g).max() > 1e-6 for g in jax.tree.leaves(kept))
    for remat in ("elementwise", "layers"):
        recomputed = jax.device_get(gradient(params, remat))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=MODULE, rtol=WHOLE), kept, recomputed)


def test_gradient_shows_who_sees_whom(pair):
    """A position's logits depend on itself and earlier positions of its own utterance, and on nothing else."""
    segment_ids = np.array([[1, 1, 1, 2, 2, 2, 2, 0]])
    positions = np.array([[0, 1, 2, 0, 1, 2, 3, 0]])
    graph, params = split(pair.ours)

    @jax.jit
    @jax.jacrev
    def sensitivity(x):
        return jnp.abs(nnx.merge(graph, params)(x, segment_ids, positions, None, "none")).sum((0, 2))

    x = np.random.default_rng(0).normal(size=(1, 8, WIDTH)).astype(np.float32)
    seen = np.abs(sensitivity(x)[:, 0]).sum(-1) > 0
    same = (segment_ids[0][:, None] == segment_ids[0][None]) & (segment_ids[0] > 0)[None]
    expected = np.tril(same)
    np.testing.assert_array_equal(seen[:7, :], expected[:7, :])
