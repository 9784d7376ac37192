"""Decoding in PyTorch against a plain loop over our own model."""

import json

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from tiny_llama import FEATURES, SENTENCES, frozen_shapes, structure, write_checkpoints, write_llama

from convert import decode_hf, from_hf, to_hf
from convert.hub.modeling_viavsp import segment_means
from viavsp_jax.data import records
from viavsp_jax.data.prompt import load_prompt
from viavsp_jax.llm_folder import load_llm
from viavsp_jax.runtime.errors import InputError


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("shards"), np.random.default_rng(0)
    examples = []
    for i, text in enumerate(SENTENCES):
        counts = rng.integers(1, 4, 3 + 2 * i).astype(np.int32)
        features = rng.normal(size=(counts.sum(), FEATURES)).astype(np.float16)
        examples.append({
            "id": f"clip{i}", "features": features, "cluster_counts": counts, "transcript": text,
            "source_language": "vi", "target_language": "vi",
        })  # fmt: skip
    records.write_shard(records.shard_path(folder, "test", 0, 1), examples)
    records.write_metadata(folder, FEATURES, ["test"])
    return folder


def our_greedy(llm, trainable, examples, steps):
    """Token ids of each clip, one whole forward pass a token: no cache, no batch, segments by a loop."""
    graph, prompt, size = structure(llm), load_prompt(llm, "</s>"), 64
    model = nnx.merge(graph, trainable, {"llm": load_llm(llm, frozen_shapes(llm))})
    table, kernel, bias = (
        np.asarray(x) for x in (model.llm.embedding[...], model.projector.kernel[...], model.projector.bias[...])
    )
    run = jax.jit(lambda x, valid: model.llm.logits(model.llm(x, valid, np.arange(size)[None], None, "none")))
    found = []
    for example in examples:
        ends = np.cumsum(example["cluster_counts"])
        means = [part.astype(np.float32).mean(0) for part in np.split(example["features"], ends[:-1])]
        x, ids = [*table[prompt.instruction("vi", "vi")], *(np.stack(means) @ kernel + bias)], []
        while len(ids) < steps and prompt.end_id not in ids:
            padded = np.pad(np.stack(x), [(0, size - len(x)), (0, 0)])[None]
            logits = run(padded, (np.arange(size) < len(x)).astype(np.int32)[None])
            ids.append(int(logits[0, len(x) - 1].argmax()))
            x.append(table[ids[-1]])
        found.append(ids)
    return found


def test_decoding_equals_ours(llm, trained, export, shards):
    source, prompt = records.open_split(shards, "test"), load_prompt(llm, "</s>")
    expected = our_greedy(llm, trained[1], source, 7)
    assert all(len(set(ids)) > 2 for ids in expected)
    for merged, batch_size in ((False, 3), (True, 1)):
        rows = decode_hf.decode(decode_hf.load_model(export, None, merged, "cpu", None), source, batch_size)
        assert [row["hypothesis"] for row in rows] == [prompt.text(ids) for ids in expected]
        assert [row["reference"] for row in rows] == SENTENCES


def test_adapters_trained_on_nf4_read_nf4_weights(shards, tmp_path):
    """bitsandbytes' 4-bit weights with the adapter beside them give what the export's merged model gives."""
    write_llama(tmp_path / "raw", hidden_size=64, intermediate_size=128, head_dim=16)
    from_hf.convert(tmp_path / "raw", tmp_path / "llm")
    write_checkpoints(tmp_path / "work", tmp_path / "llm", "nf4")
    to_hf.export(tmp_path / "work", tmp_path / "hf", merge=True)
    source = records.open_split(shards, "test")
    apart, merged = (decode_hf.load_model(tmp_path / "hf", None, merge, "cpu", None) for merge in (False, True))
    assert type(apart.llm.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"
    with torch.inference_mode():
        features, counts = (
            [torch.tensor(np.array(one[name])) for one in source] for name in ("features", "cluster_counts")
        )
        x, mask = apart.embed(features, counts, [("vi", "vi")] * len(features))
        logits = [model.llm(inputs_embeds=x, attention_mask=mask).logits for model in (apart, merged)]
    np.testing.assert_allclose(*(one[mask.bool()] for one in logits), atol=1e-4 * logits[0].abs().max().item())
    rows = [decode_hf.decode(model, source, 3) for model in (apart, merged)]
    for one, other in zip(*rows, strict=True):
        assert one.pop("score") == pytest.approx(other.pop("score"), abs=1e-3) and one == other


def test_segment_means(shards):
    example = records.open_split(shards, "test")[1]
    means = segment_means(torch.tensor(example["features"]), torch.tensor(example["cluster_counts"]).long())
    parts = np.split(example["features"].astype(np.float64), np.cumsum(example["cluster_counts"])[:-1])
    np.testing.assert_allclose(means, np.stack([part.mean(0) for part in parts]), atol=1e-6)


def test_decode_command(export, shards, tmp_path, monkeypatch, capsys):
    table = tmp_path / "out" / "table.tsv"
    argv = ["decode_hf", "--model", str(export), "--data", str(shards), "--output", str(table)]
    monkeypatch.setattr("sys.argv", argv)
    decode_hf.main()
    rates = json.loads(capsys.readouterr().out)
    assert rates["clips"] == 3 and rates["wer"] > 0
    lines = [line.split("\t") for line in table.read_text().splitlines()]
    assert lines[0] == ["id", "reference", "hypothesis", "score"] and [line[1] for line in lines[1:]] == SENTENCES
    for option, value, message in (
        ("--model", str(tmp_path), "config.json does not exist"),
        ("--llm", str(tmp_path), "give the folder of the base language model with --llm"),
        ("--data", str(tmp_path / "gone"), "no such folder"),
    ):
        monkeypatch.setattr("sys.argv", [*argv, option, value])
        with pytest.raises(SystemExit) as status:
            decode_hf.main()
        assert status.value.code == 2 and message in capsys.readouterr().err


def test_features_of_another_width(export, tmp_path):
    example = {
        "id": "a", "features": np.zeros((2, FEATURES + 1), np.float16), "cluster_counts": np.array([2], np.int32),
        "transcript": "một", "source_language": "vi", "target_language": "vi",
    }  # fmt: skip
    records.write_shard(records.shard_path(tmp_path, "test", 0, 1), [example])
    records.write_metadata(tmp_path, FEATURES + 1, ["test"])
    model = decode_hf.load_model(export, None, False, "cpu", None)
    with pytest.raises(InputError, match="width 7, the model expects 6"):
        decode_hf.decode(model, records.open_split(tmp_path, "test"), 2)
