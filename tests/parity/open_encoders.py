"""Encoders in Hugging Face form: every recorded file through the converter, every recorded number by both encoders.

B clips, T frames, D width.
"""

import contextlib
import io
import json
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from safetensors.torch import load_file, save_file

from convert import from_avhubert, to_avhubert
from convert.avhubert import load_flax
from convert.avhubert_names import WEIGHT_NORM, locate, to_hugging_face
from convert.hf_avhubert import hugging_face_config
from convert.pretrained import PRETRAINING_FILE
from tests.parity.avhubert import TIME_FIRST, TIME_LAST, Activations, unpacked
from tests.parity.media import padded
from tests.parity.rows import EXACT, MODULE, WHOLE, Golden, Row, close, exact, jit_quickly, worst
from viavsp_jax.models.avhubert.encoder import AVHubert
from viavsp_jax.prepare.features import avhubert_torch

FOLDER, ALONE = "hf_avhubert", "encoder_large_tiny"
MODALITIES = {"av": (True, True), "a": (True, False), "v": (False, True)}
# What we call a recorded activation, and where its time is.
ACTIVATIONS = {
    "fe_audio": ("fe_audio", (0, 1, 2)), "fe_video": ("fe_video", (0, 1, 2)), "fused_ln": ("fused_ln", (0, 1, 2)),
    "pos_conv": ("pos_conv", TIME_LAST), "encoder_in": ("encoder_layer_input", TIME_FIRST),
}  # fmt: skip
Arrays = dict[str, np.ndarray]
# Audio [B, T, 104], video [B, T, 88, 88] and padding mask [B, T].
Input = tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]
Run = Callable[..., Arrays]  # of an Input


def convert(source: pathlib.Path, output: pathlib.Path) -> tuple[dict[str, torch.Tensor], str]:
    """All weights of the folder that a source becomes, and what the converter says."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        from_avhubert.convert(source, output)
    return load_file(output / "model.safetensors") | load_file(output / PRETRAINING_FILE), said.getvalue()


def same_weights(what: str, ours: dict[str, torch.Tensor], recorded: dict[str, torch.Tensor]) -> Row:
    """Counts the tensors that one side lacks, or that differ in any bit."""
    wrong = [
        name
        for name in ours.keys() | recorded.keys()
        if name not in ours or name not in recorded or ours[name].dtype != recorded[name].dtype
        or not torch.equal(ours[name], recorded[name])
    ]  # fmt: skip
    return Row(f"{what}, {len(recorded)} tensors", len(wrong), EXACT, ", ".join(sorted(wrong)[:3]))


def file_checks(golden: Golden, folder: pathlib.Path) -> Iterator[Row]:
    """Every recorded file becomes the same encoder, in folder / "encoder", and that becomes the recorded file again."""
    for name in golden.names(f"{FOLDER}/*/*"):
        target = folder / pathlib.Path(name).parent.name / pathlib.Path(name).name.removesuffix(".xz")
        target.parent.mkdir(exist_ok=True)
        if name.endswith(".xz"):
            unpacked(golden, name, target.parent)
        else:
            shutil.copy(golden.path(name), target)
    original = load_file(folder / ALONE / "model.safetensors")
    weights, _ = convert(folder / ALONE, folder / "encoder")
    expected = {ours: original[theirs] for ours, theirs in locate(original, ALONE).names.items()}
    yield same_weights(f"{ALONE} converted", weights, expected)
    for path in sorted(folder.glob("*/*.*")):
        if path.suffix in (".safetensors", ".bin") and path.parent.name not in (ALONE, "encoder"):
            found, said = convert(path, folder / "other")
            yield same_weights(f"{path.parent.name}/{path.name} is the encoder alone", found, weights)
            left = len(load_file(path)) - len(original)
            counts = [int(count) for count in re.findall(r"\((\d+)\)", said)]
            yield exact(f"{path.parent.name}: all {left} foreign weights named", sum(counts), left)
    for path in sorted((folder / ALONE).glob("*.bin")):
        yield same_weights(f"{path.name} is model.safetensors", convert(path, folder / "other")[0], weights)
    older = load_file(golden.path(f"{FOLDER}/pos_conv_old_names.safetensors"))
    renamed = {original_name(name): value for name, value in older.items()}
    yield same_weights("names of older PyTorch", renamed, {name: original[name] for name in renamed})
    (folder / "older").mkdir()
    rest = {name: value for name, value in original.items() if name not in renamed}
    save_file(rest | older, folder / "older" / "model.safetensors")
    shutil.copy(folder / ALONE / "config.json", folder / "older")
    yield same_weights("names of older PyTorch, converted", convert(folder / "older", folder / "other")[0], weights)
    with contextlib.redirect_stdout(io.StringIO()):
        to_avhubert.convert(folder / "encoder", folder / "back")
    yield same_weights("there and back", load_file(folder / "back" / "model.safetensors"), original)


def original_name(name: str) -> str:
    """A name in newer PyTorch's spelling."""
    for older, newer in WEIGHT_NORM:
        name = re.sub(rf"\b{older}$", newer, name)
    return name


def key_checks(golden: Golden) -> Iterator[Row]:
    """Names and shapes at real size, and the recorded table of names."""
    lists = {name: golden.json(name) for name in golden.names(f"{FOLDER}/keys/*_large.json")}
    for name, recorded in lists.items():
        title = pathlib.Path(name).stem
        shapes = {key: tuple(shape) for key, (shape, _) in recorded["keys"].items()}
        encoder = locate(shapes, title)
        ours = {name: shapes[theirs] for name, theirs in encoder.names.items()}
        config = hugging_face_config(recorded["config"], ours, title)
        with torch.device("meta"):
            model = avhubert_torch.AVHubert(config).state_dict()
        wanted = {name: [list(value.shape), str(value.dtype).removeprefix("torch.")] for name, value in model.items()}
        labels = [recorded["config"][size] for size in ("num_classes", "final_dim")]
        wanted |= {"mask_emb": [[config.audio_dim], "float32"], "label_embs_concat": [labels, "float32"]}
        written = {encoder.prefix + to_hugging_face(name): value for name, value in wanted.items()}
        theirs = {key: value for key, value in recorded["keys"].items() if key.startswith(encoder.prefix)}
        yield exact(f"{title}: names, shapes and types of {len(written)} tensors", written == theirs, True)
        yield exact(f"{title}: names", len(shapes), recorded["n_keys"])
        tied = {key for group in recorded.get("tied", []) for key in group[1:]}
        buffers = ("running_mean", "running_var", "num_batches_tracked")
        counted = [np.prod(shape) for key, shape in shapes.items() if not key.endswith(buffers) and key not in tied]
        yield exact(f"{title}: parameters", int(sum(counted)), recorded["n_params"])
    table = golden.json(f"{FOLDER}/keys/key_map.json")["map"]
    for layer in (0, 23):
        pairs = {ours.format(n=layer): theirs and theirs.format(n=layer) for ours, theirs in table.items()}
        found = {ours: theirs and to_hugging_face(ours) for ours, theirs in pairs.items()}
        yield exact(f"table of names, block {layer}", found == pairs, True)


def by_torch(folder: pathlib.Path) -> Run:
    """Runs the PyTorch encoder: all recorded names → arrays."""
    model = avhubert_torch.load_encoder(folder)
    activations = Activations(model)

    @torch.inference_mode()
    def run(audio: np.ndarray | None, video: np.ndarray | None, mask: np.ndarray | None) -> Arrays:
        heard = None if audio is None else model.audio_features(torch.from_numpy(audio))
        seen = None if video is None else model.video_features(torch.from_numpy(video))
        mask = None if mask is None else torch.from_numpy(mask)
        outputs = [model.encode(heard, seen, mask, layer) for layer in range(model.config.num_layers + 1)]
        found = {f"layer{layer}": kept.numpy() for layer, (kept, _) in enumerate(outputs)}
        values = activations.values
        found |= {name: values[ours].transpose(axes) for name, (ours, axes) in ACTIVATIONS.items() if ours in values}
        return found | {"last_hidden_state": outputs[0][1].numpy()}

    return run


def by_flax(folder: pathlib.Path) -> Run:
    """As `by_torch`, the Flax encoder; one compilation for each shape, and one for the pictures of each."""
    config, params = load_flax(folder)
    graph = nnx.graphdef(nnx.eval_shape(lambda: AVHubert(config, dtype=jnp.float32, rngs=nnx.Rngs(0))))

    @jit_quickly
    def see(params, video):
        return nnx.merge(graph, params).video_features(video)

    @jit_quickly
    def encode(params, audio, seen, mask):
        model, found = nnx.merge(graph, params), {}
        heard = None if audio is None else model.audio_features(audio)
        both = [jnp.zeros_like(seen if heard is None else heard) if x is None else x for x in (heard, seen)]
        fused = jnp.concatenate(both, -1) if model.fusion_proj else both[0] + both[1]
        found["fused_ln"], x = model.fusion_norm(fused), model.fuse(heard, seen)
        found |= {f"fe_{name}": x.swapaxes(1, 2) for name, x in (("audio", heard), ("video", seen)) if x is not None}
        zeroed = x if mask is None else jnp.where(mask[..., None], 0, x)
        found |= {"pos_conv": model.positional_conv(zeroed), "encoder_in": model.position(zeroed)}
        for layer in range(config.num_layers + 1):
            found[f"layer{layer}"], found["last_hidden_state"] = model.encode(heard, seen, mask, layer)
        return found

    pictures = {}  # by identity: each clip is seen in two modalities

    def run(audio: np.ndarray | None, video: np.ndarray | None, mask: np.ndarray | None) -> Arrays:
        seen = None
        if video is not None:
            if id(video) not in pictures:
                pictures[id(video)] = see(params, video)
            seen = pictures[id(video)]
        return jax.device_get(encode(params, audio, seen, mask))

    return run


def read_inputs(golden: Golden) -> dict[str, Input]:
    """By prefix of recorded names."""
    recorded = golden.arrays(f"{FOLDER}/inputs.npz")
    numbers = sorted(int(name.removeprefix("audio_")) for name in recorded if re.fullmatch(r"audio_\d+", name))
    audio = [recorded[f"audio_{number}"][0].T for number in numbers]
    video = [recorded[f"video_{number}"][0, 0] for number in numbers]
    found = {f"clip{n}": (heard[None], seen[None], None) for n, heard, seen in zip(numbers, audio, video, strict=True)}
    mask = ~recorded["attention_mask_batch"].astype(bool)
    longest = max(map(len, audio))
    batch, mask = [padded(kind, longest).numpy() for kind in (audio, video)], mask[:, :longest]
    return found | {"batch": (*batch, mask), "long": (recorded["audio_long"].swapaxes(1, 2), None, None)}


def output_checks(golden: Golden, title: str, run: Run, inputs: dict[str, Input], tolerance: float) -> Iterator[Row]:
    """All recorded outputs."""
    for modality, (hears, sees) in MODALITIES.items():
        recorded = golden.arrays(f"{FOLDER}/outputs_{modality}.npz")
        prefixes = list(dict.fromkeys(name.partition("_")[0] for name in recorded))
        for prefix in prefixes:
            audio, video, mask = inputs[prefix]
            found = run(audio if hears else None, video if sees else None, mask)
            rows = []
            for name in (name for name in recorded if name.startswith(f"{prefix}_")):
                short = name.removeprefix(f"{prefix}_")
                ours, theirs = found[short], recorded[name]
                if mask is not None:  # what padded frames hold has no meaning
                    ours, theirs = (x[~mask] if x.shape[:2] == mask.shape else x for x in (ours, theirs))
                rows.append(close(short, ours, theirs, tolerance))
            yield worst(f"{title} {prefix}, {modality}", rows)
            layers = [name for name in recorded if re.fullmatch(rf"{prefix}_layer\d+", name)]
            blocks = sum(re.fullmatch(r"layer\d+", name) is not None for name in found)
            yield exact(f"{title} {prefix}, {modality}: layers recorded", len(layers), blocks)


def checks(golden: Golden) -> Iterator[Row]:
    """Everything recorded of encoders."""
    yield from key_checks(golden)
    recorded = golden.arrays(f"{FOLDER}/inputs.npz")
    lengths = recorded["attention_mask_batch"].astype(bool).sum(1)
    yield exact("batch lengths", lengths, recorded["lengths_batch"])
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        yield from file_checks(golden, folder)
        heads = json.loads((folder / ALONE / "config.json").read_text(encoding="utf-8"))["num_attention_heads"]
        yield exact("heads", avhubert_torch.load_encoder(folder / "encoder").config.num_heads, heads)
        inputs = read_inputs(golden)
        yield from output_checks(golden, "PyTorch", by_torch(folder / "encoder"), inputs, MODULE)
        yield from output_checks(golden, "Flax", by_flax(folder / "encoder"), inputs, WHOLE)
