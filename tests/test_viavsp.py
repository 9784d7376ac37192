"""The whole model against recorded runs of the reference: logits, loss and every gradient."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, traverse_util
from safetensors.numpy import load_file

from convert import from_hf, names
from viavsp_jax.checkpoint import llama_config
from viavsp_jax.data import pipeline
from viavsp_jax.data.prompt import load_prompt
from viavsp_jax.metrics import label_loss
from viavsp_jax.models.lora import LoRAConfig
from viavsp_jax.state import abstract_model

GOLDEN = pathlib.Path(__file__).parent / "golden" / "avsp"
SAMPLES = sorted(path.stem for path in GOLDEN.glob("*_sample?_*v.npz")) + sorted(
    path.stem for path in GOLDEN.glob("*_sample?_a.npz")
)


def our_names(tensors):
    """Recorded names of learnt weights → peft's names in files."""
    return {name.removeprefix("decoder.").replace(".default.", "."): value for name, value in tensors.items()}


def to_ours(abstract, tensors):
    """Tensors under their Hugging Face names → our nested dict."""
    flat = {
        path: np.zeros(leaf.shape, np.float32) for path, leaf in traverse_util.flatten_dict(abstract, sep="/").items()
    }
    for tensor in names.tensors(abstract):
        flat[tensor.path][tensor.index] = tensor.turned(tensors[tensor.name])
    return traverse_util.unflatten_dict(flat, sep="/")


@pytest.fixture(scope="module")
def models():
    """kind → (structure, trainable, frozen) with the recorded weights."""
    found = {}
    for kind in ("gqa", "mha"):
        weights = our_names(load_file(GOLDEN / f"{kind}_adapter.safetensors"))
        width = weights["avfeat_to_llm.weight"].shape[1]
        config = llama_config(GOLDEN / f"llm_{kind}")
        structure, trainable, _ = abstract_model(config, LoRAConfig(), width, jnp.float32)
        found[kind] = structure, to_ours(trainable, weights), from_hf.load_params(GOLDEN / f"llm_{kind}")
    return found


def recorded_batch(sample, arrays):
    """One utterance as the pipeline makes it from the recorded features, counts and transcript."""
    kind, number, _ = sample.split("_")
    transcript = (GOLDEN / "data" / "test.wrd").read_text().split("\n")[int(number.removeprefix("sample"))]
    record = {
        "id": sample, "features": arrays["encoder_out"][0], "cluster_counts": arrays["cluster_counts"],
        "transcript": transcript, "source_language": "vi", "target_language": "vi",
    }  # fmt: skip
    prompt = load_prompt(GOLDEN / f"llm_{kind}", "</s>")
    shape = pipeline.RowShape(positions=10_000, frames=10_000, labels=10_000, clips=1)
    utterance = pipeline.ToUtterance(prompt, shape, np.float32).map(record)
    size = len(utterance["tokens"])
    row = utterance | {"segment_ids": np.ones(size, np.int32), "positions": np.arange(size, dtype=np.int32)}
    return {name: value[None] for name, value in row.items()}


@pytest.mark.parametrize("sample", SAMPLES)
def test_equals_the_recorded_run(models, sample):
    structure, trainable, frozen = models[sample.split("_")[0]]
    arrays = np.load(GOLDEN / f"{sample}.npz")
    batch = recorded_batch(sample, arrays)
    assert batch["targets"].tolist() == arrays["target"].tolist()
    instruction = arrays["instruction_ids"].shape[1]
    assert batch["tokens"][:, :instruction].tolist() == arrays["instruction_ids"].tolist()

    def loss(trainable):
        model = nnx.merge(structure, trainable, frozen)
        logits = model(batch)
        value, metrics = label_loss(logits, batch["targets"], batch["weights"])
        return value, (logits, model.embed(batch))

    (value, (logits, embedded)), gradients = jax.value_and_grad(loss, has_aux=True)(trainable)
    # The reference also reads the last label token, whose output it does not use.
    np.testing.assert_allclose(embedded, arrays["llm_input"][:, :-1], atol=1e-5)
    np.testing.assert_allclose(logits[0], arrays["logits"][0][batch["label_index"][0]], atol=1e-4)
    np.testing.assert_allclose(value, arrays["loss"], rtol=1e-5)
    path = GOLDEN / f"{sample.removesuffix('_av')}_grads.npz"
    if not path.exists():
        return
    recorded = to_ours(gradients, our_names(np.load(path)))
    for (path, ours), theirs in zip(
        jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(recorded), strict=True
    ):
        error = np.abs(ours - theirs).max() / np.abs(theirs).max()
        assert error < 1e-4, (jax.tree_util.keystr(path), error)


def test_recordings_cover_what_is_claimed():
    assert len(SAMPLES) == 12 and len(list(GOLDEN.glob("*_grads.npz"))) == 4
    kv_heads = {json.loads(path.read_text())["num_key_value_heads"] for path in GOLDEN.glob("llm_*/config.json")}
    assert len(kv_heads) == 2
