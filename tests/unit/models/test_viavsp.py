"""The whole model at another size than the recorded ones (test_golden.py): what it reads, and packing."""

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_llama import FEATURES, LORA, SENTENCES

from viavsp_jax.data import packing, pipeline
from viavsp_jax.data.prompt import load_prompt
from viavsp_jax.llm_folder import llama_config
from viavsp_jax.models.attention import PackedAttention
from viavsp_jax.models.viavsp import ModelConfig, ViAVSP

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def model(llm) -> ViAVSP:
    attention = PackedAttention(instruction=len(load_prompt(llm, "</s>").instruction("vi", "vi")))
    config = ModelConfig(llama_config(llm), LORA, FEATURES, jnp.float32, attention=attention)
    made = ViAVSP(config, nnx.Rngs(params=0))
    for projection in (made.llm.layers.q, made.llm.layers.k, made.llm.layers.v):
        projection.lora.b[...] = jax.random.normal(jax.random.key(1), projection.lora.b.shape)
    return made


def batch_of(llm, counts, rows):
    """Random utterances with these run lengths, packed."""
    rng = np.random.default_rng(0)
    records = [
        {
            "id": str(number), "features": rng.normal(size=(sum(runs), FEATURES)).astype(np.float32),
            "cluster_counts": np.array(runs), "transcript": SENTENCES[number], "source_language": "vi",
            "target_language": "vi",
        }
        for number, runs in enumerate(counts)
    ]  # fmt: skip
    shape = packing.RowShape(positions=200, frames=60, labels=120, clips=-(-len(records) // rows), window=200)
    to_utterance = packing.ToUtterance(load_prompt(llm, "</s>"), shape, np.float32)
    return records, next(iter(pipeline.packed_batches(grain.MapDataset.source(records), to_utterance, rows)))


def compiled(model):
    """As one program, or each operation would be compiled by itself."""
    graph, state = nnx.split(model)
    return jax.jit(lambda *inputs: nnx.merge(graph, state)(*inputs))


def test_reads_projected_means_where_there_is_speech_and_tokens_elsewhere(model, llm):
    (record,), batch = batch_of(llm, [[3, 1, 4]], 1)
    found = np.asarray(model.embed(batch))[0]
    means = np.stack([run.mean(0) for run in np.split(record["features"], [3, 4])])
    projected = means @ np.asarray(model.projector.kernel[...]) + np.asarray(model.projector.bias[...])
    np.testing.assert_allclose(found[batch["is_speech"][0]], projected, atol=TOLERANCE)
    text = ~batch["is_speech"][0]
    np.testing.assert_array_equal(found[text], model.llm.embedding[...][batch["tokens"][0][text]])


def test_logits_do_not_depend_on_the_packing(model, llm):
    counts = [[2, 5], [1, 1, 3], [7]]
    one_row, apart = (batch_of(llm, counts, rows)[1] for rows in (1, 3))
    run = compiled(model)
    together, alone = (np.asarray(run(batch))[batch["weights"] > 0] for batch in (one_row, apart))
    np.testing.assert_allclose(together, alone, atol=1e-4)
    assert np.abs(together).max() > 1


def test_nothing_is_read_from_other_utterances_or_the_future(model, llm):
    _, batch = batch_of(llm, [[2, 5], [1, 1, 3]], 1)

    run = compiled(model)

    def one_logit(features):
        return run(batch | {"features": features})[0, 0, 3]

    gradient = np.abs(jax.grad(one_logit)(jnp.asarray(batch["features"])))[0].sum(-1)
    assert (gradient[:7] > 0).all() and not gradient[7:].any()


def test_a_key_turns_dropout_on(model, llm):
    _, batch = batch_of(llm, [[2, 5]], 1)
    run = compiled(model)
    first, second = (np.asarray(run(batch, jax.random.key(seed))) for seed in (0, 1))
    assert np.abs(first - second).max() > 1e-3
    np.testing.assert_array_equal(first, run(batch, jax.random.key(0)))
