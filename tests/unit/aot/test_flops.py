"""Counted operations, against formulas and against XLA's own count of a model of one layer."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from configs import base
from viavsp_jax import experiment, sharding, update
from viavsp_jax.aot import flops, workload
from viavsp_jax.aot.typical_clips import TypicalPrompt
from viavsp_jax.data import packing
from viavsp_jax.data.compression import Compression
from viavsp_jax.data.settings import ClipSeconds
from viavsp_jax.decoding.decoder import Decoder
from viavsp_jax.models.attention import PackedAttention
from viavsp_jax.models.avhubert.config import AVHubertConfig
from viavsp_jax.models.avhubert.encoder import AVHubert
from viavsp_jax.models.llama import LlamaConfig
from viavsp_jax.optimizer import make_optimizer
from viavsp_jax.run_settings import read_settings
from viavsp_jax.runtime.errors import InputError

S, L, E, R = 64, 24, 48, 4  # positions, labels, encoder width, adapter rank


def make_llama(layers: int, width: int = 96, **changes: Any) -> LlamaConfig:
    llama = LlamaConfig(
        vocab_size=320, hidden_size=width, intermediate_size=2 * width, num_layers=layers, num_heads=4, num_kv_heads=2,
        head_dim=32, rope_theta=1e4, rms_norm_eps=1e-5, tie_word_embeddings=False,
    )  # fmt: skip
    return dataclasses.replace(llama, **changes)


# As Qwen3 has them, heads together wider than the model, a layer with a window, and biases as Qwen2 has them.
MORE = {"tie_word_embeddings": True, "head_dim": 48, "qk_norm": True, "biased": ("q", "k", "v"), "windows": (None, 20)}


def make_experiment(llama: LlamaConfig, remat: str, instruction: int = 0) -> experiment.Experiment:
    """One row of one utterance that fills it."""
    config = base.get_config()
    config.dtype, config.remat, config.lora.rank = "float32", remat, R
    config.data.feature_width, config.data.rows = E, 1
    config.data.row = {"positions": S, "frames": S, "labels": L, "clips": 1, "window": S}
    config.evaluate.rows, config.evaluate.decoding.num_beams = 1, 3
    settings = read_settings(config)
    return experiment.abstract_experiment(settings, llama, sharding.make_mesh(settings.mesh), "float32", instruction)


def trace_update(exp: experiment.Experiment) -> jax.stages.Traced:
    optimizer, _ = make_optimizer(exp.settings.optimizer)
    row = packing.empty_row(exp.settings.data.row, E, np.float32)
    batch = workload.on_rows(exp, 1, row)
    return update.jit_train_step(exp, optimizer).trace(update.abstract_state(exp, optimizer), exp.frozen, batch)


def adapters(llama: LlamaConfig, tokens: int) -> int:
    """Forward pass of those of q, k and v."""
    outputs = llama.head_dim * (llama.num_heads + 2 * llama.num_kv_heads)
    return 2 * tokens * R * (3 * llama.hidden_size + outputs) * llama.num_layers


def unseen(llama: LlamaConfig) -> int:
    """Forward pass of attention from S positions to those after them or behind a window: done, and masked out."""
    masked = llama.num_layers * S * (S - 1) // 2 + behind_windows(llama, range(S))
    return 4 * masked * llama.num_heads * llama.head_dim


def behind_windows(llama: LlamaConfig, positions: range) -> int:
    """What tokens at these positions do not see of the text before them, in all layers."""
    return sum(max(position + 1 - window, 0) for window in llama.windows if window for position in positions)


@pytest.mark.parametrize("llama", [make_llama(layers=3), make_llama(layers=2, **MORE)], ids=["LLaMA", "more"])
def test_an_update_does_what_is_useful_and_little_more(llama):
    found = flops.of_program(trace_update(make_experiment(llama, "none")).jaxpr.jaxpr)
    # Gradients of adapters and projector cost a forward pass more each; features have none.
    projector = 2 * 2 * S * E * llama.hidden_size
    useful = flops.useful_in_training(llama, [(range(S), L)])
    assert found == useful + 3 * adapters(llama, S) + 3 * unseen(llama) + projector


@pytest.mark.parametrize("llama", [make_llama(layers=3), make_llama(layers=2, **MORE)], ids=["LLaMA", "more"])
def test_an_instruction_is_of_use_once_a_row(llama):
    """Those behind it see it as if each had its own, which no layer and no window computes again."""
    alone = [flops.useful_in_training(llama, [(range(length), labels)]) for length, labels in ((30, 5), (40, 7))]
    instruction = flops.useful_in_training(llama, [(range(12), 0)])
    row = flops.useful_in_training(llama, [(range(12), 0), (range(12, 30), 5), (range(12, 40), 7)])
    assert row == sum(alone) - instruction > 0


def test_seeing_an_instruction_costs_its_keys_for_every_query():
    llama = make_llama(layers=2)
    without, with_it = (
        flops.of_program(trace_update(make_experiment(llama, "none", size)).jaxpr.jaxpr) for size in (0, 16)
    )
    # Two products forward, four backward.
    assert with_it - without == 3 * llama.num_layers * 4 * S * 16 * llama.num_heads * llama.head_dim


@pytest.mark.parametrize("remat", ["none", "elementwise", "layers"])
@pytest.mark.parametrize("changes", [{}, MORE | {"head_dim": 256, "windows": ()}], ids=["LLaMA", "more"])
def test_an_update_against_xla(remat, changes):
    """XLA counts the body of a loop once: one layer. It also counts what is no matrix product, little in a wide one."""
    traced = trace_update(make_experiment(make_llama(layers=1, width=768, **changes), remat))
    expected = traced.lower().cost_analysis()["flops"]
    assert 0.97 < flops.of_program(traced.jaxpr.jaxpr) / expected < 1


def test_recomputation_counts():
    counts = [
        flops.of_program(trace_update(make_experiment(make_llama(layers=2), remat)).jaxpr.jaxpr)
        for remat in ("none", "elementwise", "layers")
    ]
    assert counts == sorted(counts) and counts[2] > 1.2 * counts[1]


def test_norms_of_outputs_recompute_no_products():
    """Their gradients need what they read, which elementwise recomputation therefore keeps."""

    def recomputed(**changes: bool) -> int:
        llama = make_llama(layers=2, **changes)
        none, elementwise = (
            flops.of_program(trace_update(make_experiment(llama, remat)).jaxpr.jaxpr)
            for remat in ("none", "elementwise")
        )
        return elementwise - none

    assert recomputed(qk_norm=True) == recomputed(qk_norm=True, post_norms=True) == recomputed()


@pytest.mark.parametrize("llama", [make_llama(layers=3), make_llama(layers=2, **MORE)], ids=["LLaMA", "more"])
def test_decoding_does_what_is_useful_and_little_more(llama):
    beams, generated = 3, 5
    exp = make_experiment(llama, "none")
    decoder = Decoder(exp.mesh, exp.structure, exp.settings.evaluation.decoding, TypicalPrompt.end_ids)
    prompt = workload.longest_prompt(
        exp.settings.data, exp.settings.evaluation.bucket, [{"frame_slot": np.zeros(S), "tokens": np.zeros(S)}]
    )
    assert prompt["tokens"].shape == (S,)  # a multiple of the bucket
    batch, weights = workload.on_rows(exp, 1, prompt), (exp.trainable, exp.frozen)
    state, cache = jax.eval_shape(decoder.prefill, *weights, batch)
    found = flops.of_program(decoder.prefill.trace(*weights, batch).jaxpr.jaxpr)
    found += flops.of_program(decoder.search.trace(*weights, state, cache).jaxpr.jaxpr, generated - 1)

    read = beams * (generated - 1)
    # Each token looks at all places of the cache, of which it sees its own beam's past.
    past = beams * sum(range(generated - 1))
    places = read * cache.k.shape[3]
    unused = llama.num_layers * (places - past) + beams * behind_windows(llama, range(S, S + generated - 1))
    masked = 4 * unused * llama.num_heads * llama.head_dim
    projector = 2 * S * E * llama.hidden_size
    useful = flops.useful_in_decoding(llama, [(S, generated)], beams)
    assert found == useful + adapters(llama, S + read) + unseen(llama) + masked + projector


def test_loops_branches_and_devices():
    x = jnp.ones((4, 6, 6))

    def product(x):
        return x @ x

    def count(f, steps=1):
        return flops.of_program(jax.make_jaxpr(f)(x).jaxpr, steps)

    one = count(product)
    assert one == 2 * 4 * 6 * 6 * 6
    assert count(lambda x: jax.lax.scan(lambda x, _: (x @ x, None), x, length=5)[0]) == 5 * one
    assert count(lambda x: jax.lax.while_loop(lambda x: x.sum() > 0, product, x), steps=7) == 7 * one
    assert count(lambda x: jax.lax.cond(x.sum() > 0, lambda x: x @ x @ x, product, x)) == 2 * one
    assert count(jax.value_and_grad(lambda x: product(x).sum())) == 3 * one
    mesh = jax.sharding.AbstractMesh((2,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    whole, rows = PartitionSpec(), PartitionSpec("rows")
    shared = jax.shard_map(product, mesh=mesh, in_specs=rows, out_specs=rows)
    each = jax.shard_map(product, mesh=mesh, in_specs=whole, out_specs=whole, check_vma=False)
    assert count(shared) == one and count(each) == 2 * one


def test_a_kernel_of_the_tpu_counts_the_keys_of_each_tile():
    attention = PackedAttention(window=256, kernel="tpu", instruction=20)
    q = jax.ShapeDtypeStruct((1, 1024, 512), jnp.bfloat16)
    table = jax.ShapeDtypeStruct((1, 1024, 256), jnp.bfloat16)
    ids = jax.ShapeDtypeStruct((1, 1024), jnp.int32)
    found = flops.of_program(jax.make_jaxpr(attention)(q, q, q, table, ids, ids).jaxpr)
    # For 4 heads and 4 tiles of 256 queries two products with the tile's own keys and 384 others, in whole vectors of
    # 128: those of the instruction and of what stands before the tile.
    assert found == 4 * 4 * 2 * (2 * 256 * 640 * 128)


def test_convolutions_count_by_what_each_output_sums():
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (2, 2), [(1, 1)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=2
        )

    x, kernel = jnp.zeros((3, 8, 8, 4)), jnp.zeros((3, 3, 2, 6))
    forward = 2 * 3 * 4 * 4 * 6 * (3 * 3 * 2)
    assert flops.of_program(jax.make_jaxpr(convolve)(x, kernel).jaxpr) == forward
    # To the input it is as much work: the zeros that the stride puts between the output's gradients do not count.
    both = jax.make_jaxpr(jax.grad(lambda x: convolve(x, kernel).sum()))(x)
    assert flops.of_program(both.jaxpr) == 2 * forward


def test_the_encoder_against_xla():
    config = AVHubertConfig(
        embed_dim=64, num_layers=1, num_heads=2, ffn_dim=128, frontend_channels=16, resnet_channels=(16, 32, 48, 64),
        conv_pos=16, conv_pos_groups=2,
    )  # fmt: skip
    graph, params = nnx.split(nnx.eval_shape(lambda: AVHubert(config, dtype=jnp.float32, rngs=nnx.Rngs(0))))

    def encode(params, audio, video):
        model = nnx.merge(graph, params)
        return model.encode(model.audio_features(audio), model.video_features(video))[1]

    inputs = [jax.ShapeDtypeStruct((1, 20, *shape), jnp.float32) for shape in ((104,), (88, 88))]
    expected = jax.jit(encode).lower(params, *inputs).cost_analysis()["flops"]
    assert 0.85 < workload.encoder_flops(config, 20) / expected < 1.1
    assert workload.encoder_flops(None, 20) == 0


def test_memory_is_that_of_the_longest_clips_and_time_that_of_most():
    exp = make_experiment(make_llama(2), "none")
    row = packing.RowShape(1152, 3000, 384, 8, 384)
    data = dataclasses.replace(exp.settings.data, seconds=ClipSeconds(5.3, 15), row=row)
    evaluation = dataclasses.replace(exp.settings.evaluation, rows=4)
    settings = dataclasses.replace(exp.settings, data=data, evaluation=evaluation)
    programs, work = workload.decoding(dataclasses.replace(exp, settings=settings))
    usual, largest = work.facts["prompt_positions"], work.facts["largest_prompt_positions"]
    assert usual <= 192 < 256 <= largest <= 384
    prefills = [program for program in programs if program.runs == 1 and not program.resident]
    assert [program.timed for program in prefills] == [True, False]


def test_prompts_are_as_long_as_decoding_makes_them():
    """By its own compression, whatever the training's are."""
    exp = make_experiment(make_llama(2), "none")
    for text, longest in (("pool:1", 128), ("pool:4", 64)):  # 76 frames and an instruction of 15 tokens
        evaluation = dataclasses.replace(exp.settings.evaluation, rows=1, compression=Compression.of(text))
        settings = dataclasses.replace(exp.settings, evaluation=evaluation)
        _, work = workload.decoding(dataclasses.replace(exp, settings=settings))
        assert work.facts["prompt_positions"] == work.facts["largest_prompt_positions"] == longest


def test_rows_that_hold_no_typical_clip():
    data = read_settings(base.get_config()).data
    with pytest.raises(InputError, match="config.data.row holds no clip of 60 s, the mean of config.data.seconds"):
        workload.pack(dataclasses.replace(data, seconds=ClipSeconds(60, 60)))
