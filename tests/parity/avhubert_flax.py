"""The Flax encoder: every layer and modality of the recorded clips and of their padded batch."""

import pathlib
import tempfile
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from convert.avhubert import load_flax, to_torch_names
from convert.checkpoints import read_fairseq
from convert.from_fairseq import convert
from convert.names import Tree
from tests.parity.avhubert import MODALITIES, unpacked, variants
from tests.parity.media import encoder_inputs, padded, utterances
from tests.parity.rows import EXACT, WHOLE, Golden, Row, close, jit_quickly, worst
from viavsp_jax.models.avhubert.config import AVHubertConfig
from viavsp_jax.models.avhubert.encoder import AVHubert
from viavsp_jax.prepare.features.avhubert_torch import UNUSED_KEYS

Run = Callable[..., tuple[list[jax.Array], dict[str, jax.Array]]]


def load(golden: Golden, variant: str) -> tuple[AVHubertConfig, Tree]:
    """Config and weights of a recorded encoder, through the converters."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        convert(unpacked(golden, f"avhubert/{variant}_tiny.pt.xz", folder), folder / "encoder")
        return load_flax(folder / "encoder")


def runner(config: AVHubertConfig, params: Tree) -> Run:
    """(audio, video, padding mask) → outputs of all layers, and the final output by modalities. One compilation."""
    graph = nnx.graphdef(nnx.eval_shape(lambda: AVHubert(config, dtype=jnp.float32, rngs=nnx.Rngs(0))))

    @jit_quickly
    def run(params, audio, video, mask):
        model = nnx.merge(graph, params)
        heard, seen = model.audio_features(audio), model.video_features(video)
        layers = [model.encode(heard, seen, mask, layer)[0] for layer in range(config.num_layers + 1)]
        final = {
            name: model.encode(heard if hears else None, seen if sees else None, mask)[1]
            for name, (hears, sees) in MODALITIES.items()
        }
        return layers, final

    return lambda *inputs: run(params, *inputs)


def outputs(title: str, found: tuple, recorded, names: list[str]) -> Iterator[Row]:
    """Layers under the given recorded names, and the final outputs."""
    layers, final = found
    rows = [close(name, one, recorded[name], WHOLE) for name, one in zip(names, layers, strict=True)]
    yield worst(f"{title} every layer", rows)
    yield worst(
        f"{title} features", [close(name, one, recorded[f"finetune_{name}"], WHOLE) for name, one in final.items()]
    )


def checks(golden: Golden) -> Iterator[Row]:
    """All recorded encoders, converted to Flax and back."""
    for variant in variants(golden):
        config, params = load(golden, variant)
        run, back = runner(config, params), to_torch_names(params)
        with tempfile.TemporaryDirectory() as folder:
            read = read_fairseq(unpacked(golden, f"avhubert/{variant}_tiny.pt.xz", pathlib.Path(folder)))
        there = {n: x.numpy() for n, x in read.model.items() if n not in UNUSED_KEYS}
        different = [n for n in there.keys() | back.keys() if n not in back or not np.array_equal(there[n], back[n])]
        yield Row(f"{variant} there and back, {len(there)} tensors", len(different), EXACT)
        inputs = [encoder_inputs(golden, utterance) for utterance in utterances(golden)]
        for utterance, (audio, video) in zip(utterances(golden), inputs, strict=True):
            recorded = golden.arrays(f"avhubert/{variant}_{utterance}.npz")
            found = run(audio[None], video[None], None)
            found = [one[0] for one in found[0]], {name: one[0] for name, one in found[1].items()}
            names = [f"dump_layer{layer}" for layer in range(len(found[0]))]
            yield from outputs(f"{variant} {utterance}", found, recorded, names)
        recorded = golden.arrays(f"avhubert/{variant}_batch.npz")
        mask = recorded["padding_mask"]
        batch = [padded(list(kind), mask.shape[1]).numpy() for kind in zip(*inputs, strict=True)]
        found = run(*batch, mask)
        names = ["conv_ret_with_mask", *(f"layer{layer}" for layer in range(1, len(found[0])))]
        yield from outputs(f"{variant} batch", found, recorded, names)
