"""AV-HuBERT: checkpoint, activations, layers, modalities and padded batches."""

import functools
import lzma
import pathlib
import tempfile
from collections.abc import Iterator

import numpy as np
import torch

from convert.checkpoints import read_fairseq
from convert.from_fairseq import convert
from tests.parity.media import encoder_inputs, padded, utterances
from tests.parity.rows import MODULE, WHOLE, Arrays, Golden, Row, close, exact, worst
from viavsp_jax.prepare.features.avhubert_torch import AVHubert, load_encoder

TIME_LAST, TIME_FIRST = (0, 2, 1), (1, 0, 2)
MODALITIES = {"av": (True, True), "v": (False, True), "a": (True, False)}


def unpacked(golden: Golden, name: str, folder: pathlib.Path) -> pathlib.Path:
    """Decompresses a recorded checkpoint into `folder`."""
    path = folder / pathlib.Path(name).name.removesuffix(".xz")
    path.write_bytes(lzma.decompress(golden.path(name).read_bytes()))
    return path


def variants(golden: Golden) -> list[str]:
    """Names of the recorded encoders, e.g. large."""
    return [name.removeprefix("avhubert/").removesuffix("_tiny.pt.xz") for name in golden.names("avhubert/*.pt.xz")]


def load(golden: Golden, variant: str) -> AVHubert:
    """A recorded encoder, through the converter."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        convert(unpacked(golden, f"avhubert/{variant}_tiny.pt.xz", folder), folder / "encoder")
        return load_encoder(folder / "encoder")


def container_checks(golden: Golden, variant: str) -> Iterator[Row]:
    """Settings, names, shapes and types that the reader finds in the file."""
    with tempfile.TemporaryDirectory() as folder:
        read = read_fairseq(unpacked(golden, f"avhubert/{variant}_tiny.pt.xz", pathlib.Path(folder)))
    cfg = golden.json(f"avhubert/{variant}_tiny.cfg.json")
    keys = golden.json(f"avhubert/{variant}_tiny.keys.json")
    yield exact(f"{variant} settings", read.cfg == cfg, True)
    found = {name: [list(value.shape), str(value.dtype).removeprefix("torch.")] for name, value in read.model.items()}
    yield exact(f"{variant} names, shapes and types of {len(found)} tensors", found == keys["model"], True)


class Activations:
    """What the modules of an encoder compute, in the layouts of the recordings."""

    def __init__(self, model: AVHubert):
        resnet = model.feature_extractor_video.resnet
        self.values: dict[str, np.ndarray] = {}
        self._watch(resnet, "resnet", TIME_LAST)
        self._watch(resnet.frontend3D, "frontend3D_first2frames", (0, 1, 2, 3, 4))
        for stage in (1, 2, 3, 4):
            self._watch(getattr(resnet.trunk, f"layer{stage}"), f"trunk_layer{stage}_spatialmean", (0, 1, 2, 3))
        self._watch(model.feature_extractor_video, "fe_video", TIME_LAST)
        self._watch(model.feature_extractor_audio, "fe_audio", TIME_LAST)
        self._watch(model.layer_norm, "fused_ln", (0, 1, 2))
        if model.post_extract_proj is not None:
            self._watch(model.post_extract_proj, "post_extract_proj", (0, 1, 2))
        self._watch(model.encoder.pos_conv, "pos_conv", (0, 1, 2))
        self._watch(model.encoder.layers[0], "encoder_layer_input", TIME_FIRST, output=False)
        self._watch(model.encoder.layers[0].self_attn, "layer0_attn_in", TIME_FIRST, output=False)
        self._watch(model.encoder.layers[0].self_attn, "layer0_attn_out", TIME_FIRST)

    def _watch(self, module: torch.nn.Module, name: str, axes: tuple[int, ...], output: bool = True) -> None:
        def record(_, inputs, outputs):
            value = (outputs if output else inputs[0]).numpy().transpose(axes)
            if name.endswith("_spatialmean"):
                value = value.mean((2, 3))
            self.values[name] = value[:, :, :2] if name.endswith("_first2frames") else value

        module.register_forward_hook(record)

    def rows(self, recorded: Arrays, prefix: str) -> Iterator[Row]:
        """Those recorded under names with the prefix, against the last run."""
        for name in (name for name in recorded if name.startswith(prefix)):
            yield close(name, self.values[name.removeprefix(prefix)], recorded[name], MODULE)


def utterance_checks(
    golden: Golden, model: AVHubert, activations: Activations, variant: str, utterance: str
) -> Iterator[Row]:
    """One clip, from its mp4 and wav files: every layer, modality and activation."""
    title, recorded = f"{variant} {utterance}", golden.arrays(f"avhubert/{variant}_{utterance}.npz")
    audio, video = (torch.from_numpy(x)[None] for x in encoder_inputs(golden, utterance))
    for name, (hears, sees) in MODALITIES.items():
        heard = model.audio_features(audio) if hears else None
        seen = model.video_features(video) if sees else None
        final = model.encode(heard, seen)[1][0]
        rows = list(activations.rows(recorded, f"act_{name}_"))
        yield worst(f"{title} activations, {name}", rows)
        yield close(f"{title} features, {name}", final, recorded[f"finetune_{name}"], WHOLE)
        if name == "av":
            yield close(f"{title} final output", final, recorded["extract_features_final"], WHOLE)
            encode = functools.partial(model.encode, heard, seen)
    names = [name for name in recorded if name.startswith("dump_layer")]
    layers = {int(name.removeprefix("dump_layer")): recorded[name] for name in names}
    yield exact(f"{title} layers recorded", sorted(layers), range(model.config.num_layers + 1))
    yield worst(
        f"{title} every layer",
        [close(f"layer {layer}", encode(layer=layer)[0][0], value, WHOLE) for layer, value in layers.items()],
    )


def batch_checks(golden: Golden, model: AVHubert, activations: Activations, variant: str) -> Iterator[Row]:
    """All utterances padded to one batch. The recordings hold the padded rows too."""
    recorded = golden.arrays(f"avhubert/{variant}_batch.npz")
    inputs = [encoder_inputs(golden, utterance) for utterance in utterances(golden)]
    mask = recorded["padding_mask"]
    yield exact(f"{variant} batch padding", recorded["returned_padding_mask"], mask)
    yield exact(f"{variant} batch lengths", (~mask).sum(1), [len(audio) for audio, _ in inputs])
    mask = torch.from_numpy(mask)
    audio = model.audio_features(padded([audio for audio, _ in inputs], mask.shape[1]))
    video = model.video_features(padded([video for _, video in inputs], mask.shape[1]))
    outputs = [model.encode(audio, video, mask, layer)[0] for layer in range(model.config.num_layers + 1)]
    names = ["conv_ret_with_mask", *(f"layer{layer}" for layer in range(1, len(outputs)))]
    yield worst(
        f"{variant} batch, every layer",
        [close(name, output, recorded[name], WHOLE) for name, output in zip(names, outputs, strict=True)],
    )
    final = model.encode(audio, video, mask)[1]
    yield worst(f"{variant} batch activations", activations.rows(recorded, "act_"))
    yield close(f"{variant} batch features, av", final, recorded["finetune_av"], WHOLE)
    for name, inputs in (("v", (None, video)), ("a", (audio, None))):
        yield close(
            f"{variant} batch features, {name}", model.encode(*inputs, mask)[1], recorded[f"finetune_{name}"], WHOLE
        )


def checks(golden: Golden) -> Iterator[Row]:
    """All recorded encoders."""
    legacy = read_fairseq(golden.path("avhubert/legacy_args_container.pt"))
    yield exact("old container: its flat settings", legacy.cfg["model"] == legacy.cfg["task"], True)
    yield exact("old container: it holds tensors", bool(legacy.model), True)
    for variant in variants(golden):
        yield from container_checks(golden, variant)
        with torch.inference_mode():
            model = load(golden, variant)
            activations = Activations(model)
            for utterance in utterances(golden):
                yield from utterance_checks(golden, model, activations, variant, utterance)
            yield from batch_checks(golden, model, activations, variant)
