"""Conversion from Hugging Face folders and back, against transformers and peft."""

import json

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import peft
import pytest
import tokenizers
import torch
import transformers
from flax import nnx
from safetensors.torch import load_file, save_file

from convert import decode_hf, from_hf, to_hf
from convert.names import check_names, tensors
from viavsp_jax.checkpoint import Checkpoints, llama_config, load_llm, read_conversion
from viavsp_jax.data import records
from viavsp_jax.data.prompt import instruction_text, load_prompt
from viavsp_jax.errors import InputError
from viavsp_jax.models.lora import LoRAConfig
from viavsp_jax.models.viavsp import ViAVSP
from viavsp_jax.state import TrainState, abstract_model

WIDTH, FEATURES, WHOLE = 32, 6, 1e-4
LORA = LoRAConfig(rank=2, alpha=6.0, dropout=0.05)
SENTENCES = ["xin chào các bạn", "hôm nay trời đẹp", "một hai ba bốn"]


def write_tokenizer(folder):
    text = SENTENCES + [instruction_text("vi", "vi")]
    model = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    model.decoder = tokenizers.decoders.Metaspace()
    special = ["<unk>", "<s>", "</s>"]
    model.train_from_iterator(text, tokenizers.trainers.BpeTrainer(vocab_size=90, special_tokens=special))
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=model, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    wrapped.save_pretrained(folder)
    return len(wrapped)


def write_llama(folder, dtype=torch.float32, tied=False, shard_size="1GB", kv_heads=2, **settings):
    """A random LLaMA as transformers saves it, with a tokenizer."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=write_tokenizer(folder), hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=kv_heads, head_dim=10, rms_norm_eps=3e-3,
        rope_parameters={"rope_type": "default", "rope_theta": 37.0}, tie_word_embeddings=tied,
        initializer_range=0.3, **settings,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).to(dtype).eval()
    # A penalty that decoding here must not inherit.
    model.generation_config = transformers.GenerationConfig(repetition_penalty=1.7, eos_token_id=0)
    model.save_pretrained(folder, max_shard_size=shard_size)
    return model


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    write_llama(folder)
    return folder


@pytest.fixture(scope="module")
def llm(raw, tmp_path_factory):
    folder = tmp_path_factory.mktemp("llm") / "converted"
    from_hf.convert(raw, folder)
    return folder


def frozen_shapes(folder, dtype=jnp.float32):
    return abstract_model(llama_config(folder), LORA, FEATURES, dtype)[2]["llm"]


def edit(raw, target, change):
    """Copies a folder, with its tensors changed by `change(tensors)` and the config by what that returns."""
    target.mkdir(exist_ok=True)
    weights = load_file(raw / "model.safetensors")
    config = json.loads((raw / "config.json").read_text())
    config |= change(weights) or {}
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    (target / "config.json").write_text(json.dumps(config))
    return target


# ---- Hugging Face → here


@pytest.mark.parametrize(
    "dtype, tied, sharded", [("float32", False, True), ("bfloat16", True, False), ("float16", False, False)]
)
def test_round_trip_is_bit_exact(tmp_path, dtype, tied, sharded):
    source, folder, back = tmp_path / "hf", tmp_path / "llm", tmp_path / "back"
    theirs = write_llama(source, getattr(torch, dtype), tied, "20KB" if sharded else "1GB")
    assert (source / "model.safetensors.index.json").exists() == sharded
    from_hf.convert(source, folder)
    assert read_conversion(folder)["dtype"] == dtype
    assert read_conversion(folder)["source"] == str(source)
    assert not {file.name for file in folder.iterdir()} - {
        "params", "config.json", "generation_config.json", "conversion.json", "tokenizer.json", "tokenizer_config.json"
    }  # fmt: skip

    abstract = {"llm": frozen_shapes(folder, jnp.dtype(dtype))}
    weights = load_llm(folder, abstract["llm"])
    loaded = from_hf.load_params(source)["llm"]
    jax.tree.map(np.testing.assert_array_equal, weights, loaded)
    assert {str(x.dtype) for x in jax.tree.leaves(weights)} == {dtype}

    back.mkdir()
    stacks = to_hf.MergedStacks(folder, abstract, {}, LORA)
    to_hf.write_merged(back, folder, abstract, stacks)
    exported, state = load_file(back / "model.safetensors"), theirs.state_dict()
    assert exported.keys() == state.keys() - ({"lm_head.weight"} if tied else set())
    for name, value in exported.items():
        assert value.dtype == state[name].dtype and torch.equal(value, state[name]), name


def test_cast_and_sharding(raw, tmp_path):
    from_hf.convert(raw, tmp_path / "llm", "bfloat16")
    assert read_conversion(tmp_path / "llm")["dtype"] == "bfloat16"
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), frozen_shapes(raw, jnp.float32)
    )
    weights = load_llm(tmp_path / "llm", wanted)
    expected = load_file(raw / "model.safetensors")["model.layers.1.mlp.up_proj.weight"].bfloat16().float().T
    assert weights["layers"]["up"]["kernel"].sharding == sharding
    np.testing.assert_array_equal(weights["layers"]["up"]["kernel"][1], expected)


def test_hash_depends_on_the_weights_only(raw, llm, tmp_path):
    def move(weights):
        weights["model.norm.weight"][3] += 1e-3

    from_hf.convert(edit(raw, tmp_path / "same", lambda weights: None), tmp_path / "a")
    from_hf.convert(edit(raw, tmp_path / "moved", move), tmp_path / "b")
    hashes = [read_conversion(folder)["sha256"] for folder in (llm, tmp_path / "a", tmp_path / "b")]
    assert hashes[0] == hashes[1] != hashes[2]


def test_both_forms_of_the_rope_config(raw, tmp_path):
    def old_form(config):
        config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
        return config | {"rope_scaling": None}

    config = json.loads((raw / "config.json").read_text())
    assert config["rope_parameters"]["rope_theta"] == 37.0 and "rope_theta" not in config
    (tmp_path / "config.json").write_text(json.dumps(old_form(config)))
    assert llama_config(tmp_path) == llama_config(raw)
    assert transformers.AutoConfig.from_pretrained(tmp_path).rope_parameters["rope_theta"] == 37.0
    (tmp_path / "config.json").write_text(json.dumps(config | {"rope_scaling": {"type": "linear", "factor": 2.0}}))
    (tmp_path / "config.json").write_text(
        json.dumps({k: v for k, v in config.items() if k != "rope_parameters"} | {"rope_scaling": {"type": "linear"}})
    )
    with pytest.raises(InputError, match="rope type is 'linear'"):
        llama_config(tmp_path)


def test_names_are_listed_together(raw, tmp_path):
    def change(weights):
        del weights["model.norm.weight"], weights["model.layers.1.mlp.up_proj.weight"]
        weights["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(40)
        weights["model.layers.2.mlp.up_proj.weight"] = torch.zeros(48, 32)
        weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(5)

    with pytest.raises(InputError) as error:
        from_hf.convert(edit(raw, tmp_path / "hf", change), tmp_path / "llm")
    missing, unknown = str(error.value).split("; unknown: ")
    assert missing.endswith("missing: model.layers.1.mlp.up_proj.weight, model.norm.weight")
    assert unknown == "model.layers.0.self_attn.q_proj.bias, model.layers.2.mlp.up_proj.weight"
    assert not (tmp_path / "llm").exists()


def test_weights_of_ours_without_a_name_are_listed():
    with pytest.raises(InputError, match="llm/gate, llm/layers/q/bias$"):
        tensors({"llm": {"layers": {"q": {"bias": np.zeros(3)}}, "gate": np.zeros(2), "embedding": np.zeros((2, 2))}})
    check_names(["a"], ["a", "model.layers.31.self_attn.rotary_emb.inv_freq"], "here")


def test_inverse_frequencies_and_a_tied_head_are_accepted(tmp_path):
    write_llama(tmp_path / "tied", tied=True)

    def change(weights):
        weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(5)
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()

    changed = from_hf.load_params(edit(tmp_path / "tied", tmp_path / "changed", change))
    jax.tree.map(np.testing.assert_array_equal, changed, from_hf.load_params(tmp_path / "tied"))
    assert "head" not in changed["llm"]


def test_shapes_that_contradict_the_config(raw, tmp_path):
    folder = edit(raw, tmp_path / "hf", lambda weights: {"num_key_value_heads": 4})
    with pytest.raises(InputError, match=r"layers\.1\.self_attn\.v_proj\.weight is \[20, 32\] and not \[40, 32\]"):
        from_hf.convert(folder, tmp_path / "llm")
    assert not (tmp_path / "llm").exists()


@pytest.mark.parametrize("value, dtype", [(float("nan"), None), (float("inf"), None), (1e6, "float16")])
def test_values_that_are_not_finite(raw, tmp_path, value, dtype):
    def change(weights):
        weights["model.layers.1.mlp.down_proj.weight"][3, 4] = value

    with pytest.raises(InputError, match="model.layers.1.mlp.down_proj.weight holds values that are not finite"):
        from_hf.convert(edit(raw, tmp_path / "hf", change), tmp_path / "llm", dtype)
    with pytest.raises(InputError, match="not a converted language model"):
        load_llm(tmp_path / "llm", frozen_shapes(raw))
    from_hf.convert(raw, tmp_path / "llm")  # a second try goes over the remains of the first
    jax.tree.map(
        np.testing.assert_array_equal,
        load_llm(tmp_path / "llm", frozen_shapes(raw)),
        from_hf.load_params(raw)["llm"],
    )


def test_files_that_cannot_be_read(raw, tmp_path):
    (tmp_path / "config.json").write_text((raw / "config.json").read_text())
    with pytest.raises(InputError, match="no model.safetensors"):
        from_hf.load_params(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"\*\.bin only.*save_pretrained"):
        from_hf.load_params(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((raw / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(InputError, match="model.safetensors is not a safetensors file, or damaged"):
        from_hf.load_params(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"lm_head.weight": "gone.safetensors"}}')
    with pytest.raises(InputError, match="lacks files that its index names: gone.safetensors"):
        from_hf.load_params(tmp_path)


def test_mixed_dtypes_need_a_choice(raw, tmp_path):
    def change(weights):
        weights["model.norm.weight"] = weights["model.norm.weight"].bfloat16()

    folder = edit(raw, tmp_path / "hf", change)
    with pytest.raises(InputError, match="mixes weights of type BF16, F32: choose one with --dtype"):
        from_hf.load_params(folder)
    assert from_hf.load_params(folder, "float32")["llm"]["final_norm"]["scale"].dtype == np.float32


def test_folders_that_are_no_output(raw, llm):
    with pytest.raises(InputError, match="already holds a converted model"):
        from_hf.convert(raw, llm)
    with pytest.raises(InputError, match="is the Hugging Face folder itself"):
        from_hf.convert(raw, raw)


def test_a_raw_folder_is_no_language_model_folder(raw):
    with pytest.raises(InputError, match=f"python -m convert.from_hf {raw} --output"):
        load_llm(raw, frozen_shapes(raw))


# ---- here → Hugging Face


@pytest.fixture(scope="module")
def trained(llm, tmp_path_factory):
    """A work folder with a checkpoint of random learnt weights, and those weights."""
    workdir = tmp_path_factory.mktemp("work")
    shapes = abstract_model(llama_config(llm), LORA, FEATURES, jnp.float32)[1]
    rng = np.random.default_rng(0)
    trainable = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape, scale=0.3), jnp.float32), shapes)
    config = {
        "dtype": "float32",
        "llm": {"path": str(llm), "end_token": "</s>"},
        "lora": {"rank": LORA.rank, "alpha": LORA.alpha, "dropout": LORA.dropout},
        "data": {"feature_width": FEATURES},
        "evaluate": {"max_new_tokens": 7},
    }
    data = iter(grain.MapDataset.range(4).to_iter_dataset())
    model = {"language model sha256": json.loads((llm / "conversion.json").read_text())["sha256"]}
    checkpoints = Checkpoints(workdir)
    for step, accuracy in ((3, 0.9), (5, 0.1)):
        shifted = jax.tree.map(lambda x, step=step: x + (step - 3), trainable)
        state = TrainState(jnp.int32(step), shifted, optax.sgd(0.1).init(shifted))
        checkpoints.save(state, data, json.dumps(config), model, {"accuracy": accuracy})
    checkpoints.close()
    return workdir, trainable


@pytest.fixture(scope="module")
def export(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "hf"
    to_hf.export(trained[0], folder, merge=True)
    return folder


def our_logits(llm, trainable, tokens):
    """The whole model on text only, float32[B, S, V]."""
    config = llama_config(llm)

    def build():
        return ViAVSP(config, LORA, FEATURES, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(0))

    graph = nnx.split(nnx.eval_shape(build))[0]
    frozen = {"llm": load_llm(llm, frozen_shapes(llm))}

    @jax.jit
    def run(trainable, frozen):
        model = nnx.merge(graph, trainable, frozen)
        positions = np.tile(np.arange(tokens.shape[1]), (len(tokens), 1))
        x = model.llm(model.llm.embed(tokens), jnp.ones(tokens.shape, int), positions, None, False)
        return model.llm.logits(x)

    return run(trainable, frozen)


def test_peft_and_transformers_load_the_export(raw, llm, trained, export):
    tokens = np.random.default_rng(0).integers(0, llama_config(llm).vocab_size, (2, 9))
    expected = our_logits(llm, trained[1], tokens)
    base = transformers.AutoModelForCausalLM.from_pretrained(raw)
    merged = transformers.AutoModelForCausalLM.from_pretrained(export / "merged")
    with torch.no_grad():
        plain = base(torch.tensor(tokens)).logits.numpy()
        adapted = peft.PeftModel.from_pretrained(base, export / "adapter").eval()
        np.testing.assert_allclose(adapted(torch.tensor(tokens)).logits, expected, atol=WHOLE, rtol=WHOLE)
        np.testing.assert_allclose(merged(torch.tensor(tokens)).logits, expected, atol=WHOLE, rtol=WHOLE)
    assert np.abs(plain - expected).max() > 0.1, "the adapter must change the output"
    config = json.loads((export / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(raw) and config["lora_alpha"] == 6
    saved = peft.get_peft_model_state_dict(adapted)
    written = load_file(export / "adapter" / "adapter_model.safetensors")
    assert saved.keys() == written.keys() and all(torch.equal(saved[name], written[name]) for name in saved)


def test_projector_and_settings(trained, export):
    projector = load_file(export / "projector.safetensors")
    np.testing.assert_array_equal(projector["avfeat_to_llm.weight"].T, trained[1]["projector"]["kernel"])
    np.testing.assert_array_equal(projector["avfeat_to_llm.bias"], trained[1]["projector"]["bias"])
    settings = json.loads((export / "viavsp.json").read_text())
    assert settings["feature_width"] == FEATURES and settings["step"] == 3 and settings["max_new_tokens"] == 7
    assert transformers.AutoConfig.from_pretrained(export / "merged").dtype == torch.float32
    generation = transformers.GenerationConfig.from_pretrained(export / "merged")
    assert generation.eos_token_id == 2 and generation.repetition_penalty in (None, 1.0)


def test_merged_model_in_several_files(llm, trained, export, tmp_path, monkeypatch):
    monkeypatch.setattr(to_hf, "SHARD_BYTES", 30_000)
    to_hf.export(trained[0], tmp_path / "hf", "3", merge=True)
    files = sorted((tmp_path / "hf" / "merged").glob("model-*-of-*.safetensors"))
    assert len(files) > 2 and all(file.stat().st_size < 32_000 for file in files)
    many, one = (
        transformers.AutoModelForCausalLM.from_pretrained(folder / "merged").state_dict()
        for folder in (tmp_path / "hf", export)
    )
    assert many.keys() == one.keys() and all(torch.equal(many[name], one[name]) for name in one)


def test_steps_and_what_is_not_there(trained, tmp_path):
    workdir, trainable = trained
    to_hf.export(workdir, tmp_path / "hf", "latest")
    bias = load_file(tmp_path / "hf" / "projector.safetensors")["avfeat_to_llm.bias"]
    np.testing.assert_array_equal(bias, trainable["projector"]["bias"] + 2)
    assert not (tmp_path / "hf" / "merged").exists() and not (tmp_path / "hf.partial").exists()
    with pytest.raises(InputError, match=r"no checkpoint 4: expected best, latest or one of \[3, 5\]"):
        to_hf.export(workdir, tmp_path / "hf", "4")
    with pytest.raises(InputError, match="holds no checkpoints: train first"):
        to_hf.export(tmp_path, tmp_path / "hf")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("keep me")
    with pytest.raises(InputError, match="is not empty and no earlier export"):
        to_hf.export(workdir, tmp_path / "other")
    assert (tmp_path / "other" / "notes.txt").read_text() == "keep me"


# ---- decoding with PyTorch


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
    config, prompt, size = llama_config(llm), load_prompt(llm, "</s>"), 64

    def build():
        return ViAVSP(config, LORA, FEATURES, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(0))

    graph = nnx.split(nnx.eval_shape(build))[0]
    model = nnx.merge(graph, trainable, {"llm": load_llm(llm, frozen_shapes(llm))})
    table, kernel, bias = (
        np.asarray(x) for x in (model.llm.embedding[...], model.projector.kernel[...], model.projector.bias[...])
    )
    run = jax.jit(lambda x, valid: model.llm.logits(model.llm(x, valid, np.arange(size)[None], None, False)))
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


def test_segment_means(shards):
    example = records.open_split(shards, "test")[1]
    means = decode_hf.segment_means(torch.tensor(example["features"]), torch.tensor(example["cluster_counts"]).long())
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
    assert lines[0] == ["id", "reference", "hypothesis"] and [line[1] for line in lines[1:]] == SENTENCES
    for option, value, message in (
        ("--model", str(tmp_path), "viavsp.json does not exist"),
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
