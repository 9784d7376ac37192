"""The reference's trained checkpoint, taken up and given back, and the names of all weights at real size."""

import contextlib
import json
import pathlib
import tempfile
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import torch
from safetensors.torch import load_file

from configs import base
from convert import from_hf, from_reference, to_reference
from convert.checkpoints import FairseqCheckpoint, read_fairseq, read_moments
from convert.fairseq_container import PRETRAINED_ONLY
from convert.from_fairseq import encoder_config
from convert.names import REFERENCE_ENCODER, tensors
from tests.parity.avhubert import unpacked
from tests.parity.rows import EXACT, Golden, Row, exact, worst
from viavsp_jax.experiment import load_experiment
from viavsp_jax.models.llama import LlamaConfig
from viavsp_jax.models.lora import LoRAConfig
from viavsp_jax.models.viavsp import ModelConfig
from viavsp_jax.prepare.features.avhubert_torch import UNUSED_KEYS, AVHubert
from viavsp_jax.state import abstract_model

Shapes = dict[str, list[int]]


def same_tensors(what: str, ours: dict[str, torch.Tensor], recorded: dict[str, torch.Tensor]) -> Row:
    """Counts the tensors that are not equal bit for bit, those of one side only included."""
    names = ours.keys() | recorded.keys()
    equal = [n in ours and n in recorded and torch.equal(ours[n], recorded[n]) for n in names]
    return Row(f"{what}, {len(names)} tensors", float(equal.count(False)), EXACT)


def described(tensors: dict[str, torch.Tensor]) -> dict[str, list]:
    """Shapes and dtypes, as the recordings note them."""
    return {name: [list(x.shape), str(x.dtype).removeprefix("torch.")] for name, x in tensors.items()}


def checkpoint_checks(golden: Golden, kind: str, folder: pathlib.Path) -> Iterator[Row]:
    """fairseq's checkpoint_best.pt → our work folder and encoder → fairseq's file and Hugging Face's."""
    best = unpacked(golden, f"avsp/checkpoint_best_{kind}.pt.xz", folder)
    recorded = golden.json(f"avsp/checkpoint_best_{kind}.keys.json")
    read = read_fairseq(best)
    yield exact("checkpoint_best settings", read.cfg == golden.json(f"avsp/checkpoint_best_{kind}.cfg.json"), True)
    yield exact("checkpoint_best names, shapes and types", described(read.model) == recorded["model"], True)
    adapter = load_file(golden.path(f"avsp/{kind}_adapter.safetensors"))
    yield same_tensors("checkpoint_best adapters", {name: read.model.get(name) for name in adapter}, adapter)
    from_hf.convert(golden.path(f"avsp/llm_{kind}"), folder / "llm")
    avhubert = unpacked(golden, "avhubert/large_tiny.pt.xz", folder)
    with contextlib.redirect_stdout(None):
        from_reference.convert(best, load_experiment(run_config(read, folder / "llm")), folder / "work")
        from_reference.convert_encoder(best, avhubert, folder / "encoder")
        to_reference.export(
            folder / "work", encoder=folder / "encoder", fairseq=folder / "back.pt", hf=folder / "hf"
        )  # fmt: skip
    yield from returned_checks(best, folder / "back.pt", recorded)
    written: dict[str, torch.Tensor] = {}
    for path in (folder / "hf").glob("*.safetensors"):
        written |= load_file(path)
    expected = golden.json(f"avsp/{kind}_state_dict_keys.json")
    found = {name: value for name, value in written.items() if name in expected}
    yield exact("AVSPLLMModel names, shapes and types", described(found) == expected, True)
    llm = load_file(golden.path(f"avsp/llm_{kind}/model.safetensors"))
    base_names = {name: name.removeprefix("decoder.base_model.model.").replace(".base_layer.", ".") for name in written}
    rest = {base_names[name]: value for name, value in written.items() if name not in read.model}
    yield same_tensors("AVSPLLMModel language model", rest, llm)
    yield same_tensors(
        "AVSPLLMModel adapters and encoder", {n: v for n, v in written.items() if n in read.model}, read.model
    )


def run_config(read: FairseqCheckpoint, llm: pathlib.Path):
    """The base recipe with the sizes and the schedule of a checkpoint."""
    config, schedule = base.get_config(), read.cfg["lr_scheduler"]
    config.dtype = "float32"
    config.llm.path = str(llm)
    config.data.feature_width = read.model["avfeat_to_llm.weight"].shape[1]
    config.lora.rank = next(value.shape[0] for name, value in read.model.items() if "lora_A" in name)
    config.updates = read.cfg["optimization"]["max_update"]
    config.optimizer.peak_lr = schedule["lr"][0]
    for name in ("warmup", "hold", "decay"):
        config.optimizer[f"{name}_updates"] = schedule[f"{name}_steps"]
    return config


def returned_checks(best: pathlib.Path, back: pathlib.Path, recorded: dict) -> Iterator[Row]:
    """The file given back, against the one it came from: weights, moments, container."""
    there, returned = read_fairseq(best).model, torch.load(back, weights_only=True)
    yield same_tensors("there and back: weights", returned["model"], there)
    names = [name for name in there if not name.startswith(REFERENCE_ENCODER)]
    old, new = read_moments(best, names), read_moments(back, names)
    yield same_tensors("there and back: Adam's first moments", new.exp_avg, old.exp_avg)
    yield same_tensors("there and back: Adam's second moments", new.exp_avg_sq, old.exp_avg_sq)
    container = {name: type(value).__name__ for name, value in returned.items()}
    group = returned["last_optimizer_state"]["param_groups"][0]
    counts = [len(group["params"]), len(returned["last_optimizer_state"]["state"])]
    optimizer = recorded["last_optimizer_state"]
    yield worst("there and back: container", [
        exact("parts", container == recorded["container"], True),
        exact("history", returned["optimizer_history"] == recorded["optimizer_history"], True),
        exact("extra state", sorted(returned["extra_state"]) == sorted(recorded["extra_state"]), True),
        exact("parameters", counts, [optimizer["param_groups"][0]["params"], optimizer["state_entries"]]),
    ])  # fmt: skip


def encoder_shapes(recorded: dict) -> Shapes:
    """All weights of a pre-trained encoder of a recorded size, as the converters hold them, by shape."""
    meta = {name: torch.empty(shape, device="meta") for name, (shape, _) in recorded["keys"].items()}
    cfg = {"model": recorded["model_cfg"], "task": recorded["task_cfg"]}
    config = encoder_config(FairseqCheckpoint(meta, cfg, None), "recorded")
    with torch.device("meta"):
        used = {name: list(tensor.shape) for name, tensor in AVHubert(config).state_dict().items()}
    return used | {name: list(meta[name].shape) for name in UNUSED_KEYS if name in meta}


def same_shapes(what: str, ours: Shapes, recorded: dict) -> Row:
    """Counts the names that one side lacks or whose shapes differ."""
    theirs = {name: shape for name, (shape, _) in recorded["keys"].items()}
    wrong = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    row = exact(what, [len(wrong), len(ours)], [0, recorded["n_keys"]])
    return Row(f"{what}, {len(ours)} names", row.error, EXACT, ", ".join(wrong[:5]))


def name_checks(golden: Golden) -> Iterator[Row]:
    """What is read and written at the recorded real sizes, by names and shapes; nothing is allocated."""
    recorded = {name: golden.json(name) for name in golden.names("keys/*.json")}
    files = {name.removeprefix("keys/").removesuffix(".json"): value for name, value in recorded.items()}
    for name in ("large", "base"):
        ours = encoder_shapes(files[f"avhubert_{name}_fairseq"])
        yield same_shapes(f"AV-HuBERT {name}", ours, files[f"avhubert_{name}_fairseq"])
    large = encoder_shapes(files["avhubert_large_fairseq"])
    differ = files["diff"]
    only_there = [*differ["hf_encoder_not_in_fairseq_large"], *differ["shape_differences"]]
    yield exact("AV-HuBERT of Hugging Face: nothing else in it", len(only_there), 0)
    encoder = {name: shape for name, shape in large.items() if name not in differ["fairseq_large_not_in_hf_encoder"]}
    hugging_face = files["avhubert_hf"]
    # Its two extra weights come with the pre-training's labels.
    extra = {name: shape for name, (shape, _) in hugging_face["keys"].items() if name not in encoder}
    yield same_shapes("AV-HuBERT of Hugging Face", encoder | {n: large.get(n) for n in extra}, hugging_face)
    yield from whole_checks(files, large)


def whole_checks(files: dict, encoder: Shapes) -> Iterator[Row]:
    """Adapters, projector, encoder and language model together."""
    llm = files["viavsp_llm_hf"]["llm_config"]
    llama = LlamaConfig(
        vocab_size=llm["vocab_size"], hidden_size=llm["hidden_size"], intermediate_size=llm["intermediate_size"],
        num_layers=llm["num_hidden_layers"], num_heads=llm["num_attention_heads"],
        num_kv_heads=llm["num_key_value_heads"], head_dim=llm["hidden_size"] // llm["num_attention_heads"],
        rope_theta=llm["rope_theta"], rms_norm_eps=llm["rms_norm_eps"], tie_word_embeddings=llm["tie_word_embeddings"],
    )  # fmt: skip
    width = files["avhubert_large_fairseq"]["model_cfg"]["encoder_embed_dim"]
    _, trainable, frozen = abstract_model(ModelConfig(llama, LoRAConfig(), width, jnp.bfloat16))
    learnt, base_llm = ({one.reference_name: list(one.shape) for one in tensors(tree)} for tree in (trainable, frozen))
    used = {n: shape for n, shape in encoder.items() if n not in UNUSED_KEYS or n in PRETRAINED_ONLY}
    kept = {REFERENCE_ENCODER + name: shape for name, shape in used.items()} | learnt
    yield same_shapes("checkpoint_best at real size", kept, files["viavsp_llm_fairseq_checkpoint_best"])
    unfiltered = files["viavsp_llm_fairseq_full_unfiltered"]
    yield same_shapes("the whole model in fairseq", kept | base_llm, unfiltered)
    yield same_shapes("the whole model of Hugging Face", kept | base_llm, files["viavsp_llm_hf"])
    count = sum(leaf.size for leaf in jax.tree.leaves(trainable))
    yield exact("trained parameters", count, unfiltered["n_trainable_lora_and_projector"])


def checks(golden: Golden) -> Iterator[Row]:
    """Every recorded checkpoint, and all lists of names."""
    yield from name_checks(golden)
    for name in golden.names("avsp/checkpoint_best_*.pt.xz"):
        kind = name.removeprefix("avsp/checkpoint_best_").removesuffix(".pt.xz")
        with tempfile.TemporaryDirectory() as folder:
            yield from checkpoint_checks(golden, kind, pathlib.Path(folder))
    for name in golden.names("avsp/*_state_dict_keys.json"):
        kind = name.removeprefix("avsp/").removesuffix("_state_dict_keys.json")
        yield exact(f"{kind} state dict: adapters", adapter_names(golden, kind), True)


def adapter_names(golden: Golden, kind: str) -> bool:
    """Whether the adapter file holds exactly the adapters and projector of the state dict."""
    keys = json.loads(golden.path(f"avsp/{kind}_state_dict_keys.json").read_text(encoding="utf-8"))
    adapter = load_file(golden.path(f"avsp/{kind}_adapter.safetensors"))
    return {n: v for n, v in keys.items() if not n.startswith(REFERENCE_ENCODER)} == described(adapter)
