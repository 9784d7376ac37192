"""The whole model in JAX: prompts, segment means, logits, losses and gradients of the recorded utterances."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import grain
import jax
import jax.numpy as jnp
import jiwer
import numpy as np
import torch
from flax import nnx
from safetensors.numpy import load_file

from convert import names
from convert.from_reference import gather
from tests.helpers.hf_weights import load_params
from tests.parity import avhubert
from tests.parity.media import encoder_inputs
from tests.parity.rows import MODULE, WHOLE, Golden, Row, close, exact, jit_quickly, worst
from viavsp_jax.data import packing, pipeline
from viavsp_jax.data.prompt import Prompt, instruction_text, load_prompt
from viavsp_jax.llm_folder import llama_config
from viavsp_jax.losses import label_loss
from viavsp_jax.models.attention import PackedAttention
from viavsp_jax.models.lora import LoRAConfig
from viavsp_jax.models.viavsp import ModelConfig, ViAVSP
from viavsp_jax.prepare.manifest_files import read_manifest
from viavsp_jax.state import abstract_model

Tree = dict[str, Any]
Arrays = dict[str, np.ndarray]

# Not in the files: the reference's own.
ALPHA = 32.0


@dataclasses.dataclass(frozen=True)
class Model:
    """A recorded language model with the recorded adapters and projector."""

    structure: nnx.GraphDef
    trainable: Tree
    frozen: Tree
    prompt: Prompt

    def build(self, trainable: Tree) -> ViAVSP:
        """With other learnt weights."""
        return nnx.merge(self.structure, trainable, self.frozen)

    @functools.cached_property
    def run(self) -> Callable[[Tree, Arrays], tuple[jax.Array, jax.Array]]:
        """(learnt weights, batch) → logits at `label_index` and input embeddings."""

        def run(trainable, batch):
            model = self.build(trainable)
            return model(batch), model.embed(batch)

        return jit_quickly(run)

    def logits(self, batch: Arrays, trainable: Tree | None = None) -> np.ndarray:
        """At `label_index`."""
        return np.asarray(self.run(self.trainable if trainable is None else trainable, batch)[0])


def kinds(golden: Golden) -> list[str]:
    """Names of the recorded language models, e.g. gqa."""
    return [name.removeprefix("avsp/llm_") for name in golden.names("avsp/llm_*")]


def samples(golden: Golden, kind: str) -> list[tuple[str, str]]:
    """(number, modality) of the recorded samples of a language model, e.g. ("0", "av")."""
    stems = [name.removeprefix(f"avsp/{kind}_sample") for name in golden.names(f"avsp/{kind}_sample*_*.npz")]
    parts = [stem.removesuffix(".npz").split("_", 1) for stem in stems]
    return [(number, modality) for number, modality in parts if modality in avhubert.MODALITIES]


def learnt(abstract: Tree, tensors: Mapping[str, np.ndarray]) -> Tree:
    """The reference's tensors → ours, in the form of `abstract`."""
    return gather(abstract, names.tensors(abstract), {name: torch.from_numpy(x) for name, x in tensors.items()})


def load_model(golden: Golden, kind: str, **encoder: Any) -> Model:
    """From the recorded Hugging Face folder and adapter file.

    `encoder` is what `abstract_model` is to know of one in the model; its weights are left to the caller.
    """
    weights = load_file(golden.path(f"avsp/{kind}_adapter.safetensors"))
    folder = golden.path(f"avsp/llm_{kind}")
    rank = next(value.shape[0] for name, value in weights.items() if "lora_A" in name)
    width = weights["avfeat_to_llm.weight"].shape[1]
    # Dropout is off in all recordings.
    lora = LoRAConfig(rank, ALPHA, 0.0)
    prompt = load_prompt(folder, "</s>")
    attention = PackedAttention(instruction=len(prompt.instruction("vi", "vi")))
    config = ModelConfig(llama_config(folder), lora, width, jnp.float32, attention=attention, **encoder)
    structure, trainable, _ = abstract_model(config)
    frozen = jax.tree.map(jnp.asarray, load_params(folder))
    return Model(structure, learnt(others(trainable), weights), frozen, prompt)


def record(golden: Golden, kind: str, number: str, modality: str) -> Arrays:
    """A recorded utterance as the shards hold one."""
    arrays = golden.arrays(f"avsp/{kind}_sample{number}_{modality}.npz")
    return {
        "id": f"{kind}_sample{number}_{modality}",
        "features": arrays["encoder_out"][0],
        "cluster_counts": arrays["cluster_counts"],
        "transcript": golden.lines("avsp/data/test.wrd")[int(number)],
        "source_language": "vi",
        "target_language": "vi",
    }


def others(trainable: Tree) -> Tree:
    """What learns beside the encoder: adapters and projector."""
    return {name: tree for name, tree in trainable.items() if name != "encoder"}


def packed(model: Model, utterances: list[Arrays], rows: int, of_clips: bool = False) -> Arrays:
    """A batch of `rows` rows that hold the utterances, or their clips, made by the project's own pipeline."""
    big = packing.RowShape(positions=10**6, frames=10**6, labels=10**6, clips=len(utterances), window=10**6)
    whole = [packing.ToUtterance(model.prompt, big, np.float32).map(one) for one in utterances]
    clips = -(-len(utterances) // rows)
    positions, frames, labels = (sum(len(one[name]) for one in whole) for name in ("tokens", "features", "targets"))
    if of_clips:
        frames = clips * max(len(one["features"]) for one in whole)
    shape = packing.RowShape(positions, frames, labels, clips=clips, window=positions)
    to_utterance = packing.ToUtterance(model.prompt, shape, np.float32, of_clips)
    return next(iter(pipeline.packed_batches(grain.MapDataset.source(utterances), to_utterance, rows)))


def all_positions(model: Model, utterance: Arrays) -> Arrays:
    """One utterance, read to its last label token and asked for the logits everywhere, as the reference does it."""
    batch = packed(model, [utterance], 1)
    tokens = np.append(batch["tokens"], batch["targets"][:, -1:], 1)
    size = tokens.shape[1]
    positions = np.arange(size, dtype=np.int32)[None]
    return batch | {
        "tokens": tokens,
        "is_speech": np.append(batch["is_speech"], [[False]], 1),
        "segment_ids": np.ones((1, size), np.int32),
        "positions": positions,
        "label_index": positions,
        "frame_slot": batch["frame_slot"],
    }


def criterion(logits: np.ndarray, read_again: np.ndarray) -> list[int]:
    """The reference's numbers: tokens right and asked for, token errors and tokens for its WER.

    Args:
      logits: [P, V] at all positions, of which the last L read the label.
      read_again: int[L], what the reference expects there: the label from its second token on, and the end twice.
    """
    found = logits[-len(read_again) :].argmax(-1)
    words = [" ".join(map(str, ids)) for ids in (read_again, found)]
    errors = jiwer.process_words(*words)
    return [
        int((found == read_again).sum()),
        len(read_again),
        errors.substitutions + errors.deletions + errors.insertions,
        len(read_again),
    ]


def sample_checks(golden: Golden, model: Model, kind: str, number: str, modality: str) -> Iterator[Row]:
    """One recorded forward pass."""
    title, name = f"{kind} sample {number} {modality}", f"avsp/{kind}_sample{number}_{modality}.npz"
    recorded, utterance = golden.arrays(name), record(golden, kind, number, modality)
    info = golden.json(f"avsp/{kind}_info.json")[f"sample{number}_{modality}"]
    batch = all_positions(model, utterance)
    logits, embedded = (np.asarray(x)[0] for x in model.run(model.trainable, batch))
    instruction, segments = recorded["instruction_ids"].shape[1], recorded["cluster_counts"].size
    label = recorded["target"][0]
    ours = model.prompt.label(utterance["transcript"])
    yield worst(f"{title} token ids", [
        exact("instruction", model.prompt.instruction("vi", "vi"), recorded["instruction_ids"][0]),
        exact("label", ours, label),
        exact("label to predict", [*ours[1:], ours[-1]], recorded["prev_output_tokens"][0]),
        exact("label lengths", [len(ours)], recorded["target_lengths"]),
        exact("label mask", np.ones((1, len(ours)), bool), recorded["target_attn_mask"]),
        exact("places of labels", [-100] * (instruction + segments) + ours, recorded["llm_labels"][0]),
        exact("length of the prompt", instruction + segments, info["prefix_len"]),
        exact("instruction text", instruction_text("vi", "vi"), info["instruction"].removeprefix("<s> ")),
        exact("transcript", f"<s> {utterance['transcript']}</s>", info["target_text"]),
    ])  # fmt: skip
    built = model.build(model.trainable)
    yield close(f"{title} projector", built.projector(recorded["encoder_out"]), recorded["projected"], MODULE)
    speech = slice(instruction, instruction + segments)
    yield close(f"{title} segment means", embedded[speech], recorded["segment_means"][0], MODULE)
    yield close(f"{title} input of the language model", embedded, recorded["llm_input"][0], MODULE)
    yield close(f"{title} logits", logits, recorded["logits"][0], WHOLE)
    one = packed(model, [utterance], 1)
    loss = float(label_loss(model.logits(one), one["targets"], one["weights"])[0])
    yield close(f"{title} loss", [loss] * 2, [recorded["loss"], info["loss"]], WHOLE)
    numbers = [info[key] for key in ("n_correct", "acc_total", "n_error", "wer_total")]
    yield exact(f"{title} criterion", criterion(logits, recorded["prev_output_tokens"][0]), numbers)
    sizes = [info[key] for key in ("criterion_sample_size", "ntokens", "nsentences", "sample_size")]
    yield exact(f"{title} sizes", [1, len(ours), 1, 1], sizes)


def gradient_checks(golden: Golden, model: Model, kind: str, number: str) -> Iterator[Row]:
    """Every gradient of adapters and projector, audio and video, in units of the largest of its tensor."""
    batch = packed(model, [record(golden, kind, number, "av")], 1)

    def loss(trainable):
        return label_loss(model.build(trainable)(batch), batch["targets"], batch["weights"])[0]

    ours = jit_quickly(jax.grad(loss))(model.trainable)
    theirs = learnt(ours, golden.arrays(f"avsp/{kind}_sample{number}_grads.npz"))
    pairs = zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True)
    rows = [close(jax.tree_util.keystr(path), value, other, WHOLE, relative=True) for (path, value), other in pairs]
    yield worst(f"{kind} sample {number} gradients", rows)


def packing_checks(golden: Golden, model: Model, kind: str) -> Iterator[Row]:
    """The losses of the utterances do not depend on how they are packed."""
    utterances = [record(golden, kind, *sample) for sample in samples(golden, kind)]
    losses = [golden.arrays(f"avsp/{one['id']}.npz")["loss"] for one in utterances]
    for title, rows in (("one row each", len(utterances)), ("two rows", 2), ("one row", 1)):
        batch = packed(model, utterances, rows)
        log_probs = jax.nn.log_softmax(model.logits(batch))
        nll = -np.take_along_axis(log_probs, batch["targets"][..., None], -1)[..., 0] * batch["weights"]
        owner = np.take_along_axis(batch["segment_ids"], batch["label_index"], 1)
        found = [nll[row, owner[row] == segment].sum() for row in range(rows) for segment in range(2, owner.max() + 1)]
        found = [loss for loss in found if loss > 0]
        yield close(f"{kind} losses of {len(losses)} clips, {title}", sorted(found), sorted(losses), WHOLE)


def encoder_checks(golden: Golden, encoder: torch.nn.Module, kind: str, number: str, modality: str) -> Iterator[Row]:
    """From the clip's files to what the language model is given."""
    title = f"{kind} sample {number} {modality}"
    recorded = golden.arrays(f"avsp/{kind}_sample{number}_{modality}.npz")
    info = golden.json(f"avsp/{kind}_info.json")[f"sample{number}_{modality}"]
    audio, video = encoder_inputs(golden, info["utt_id"][0])
    frames = recorded["cluster_counts"].sum()
    heard, seen = avhubert.MODALITIES[modality]
    yield exact(f"{title} frames", [len(video), recorded["encoder_out"].shape[1]], [frames, frames])
    if "audio" in recorded:
        yield close(f"{title} audio", audio.T[None], recorded["audio"], MODULE)
    if "video_shape" in recorded:
        yield exact(f"{title} video", [1, 1, *video.shape], recorded["video_shape"])
    features = encoder.encode(
        encoder.audio_features(torch.from_numpy(audio)[None]) if heard else None,
        encoder.video_features(torch.from_numpy(video)[None]) if seen else None,
        torch.from_numpy(recorded["padding_mask"]),
    )[1]
    yield close(f"{title} encoder", features, recorded["encoder_out"], WHOLE)


def data_checks(golden: Golden) -> Iterator[Row]:
    """The reference's manifest, transcripts and cluster counts."""
    clips = read_manifest(golden.path("avsp/data"), "test")
    golden.path("avsp/data/test.tsv")
    counts = golden.numbers("avsp/data/test.cluster_counts")
    yield exact("transcripts of the manifest", [clip.transcript for clip in clips], golden.lines("avsp/data/test.wrd"))
    yield exact("frames of the manifest", [clip.num_frames for clip in clips], [sum(line) for line in counts])
    for kind in kinds(golden):
        for number, modality in samples(golden, kind):
            found = golden.arrays(f"avsp/{kind}_sample{number}_{modality}.npz")["cluster_counts"]
            yield exact(f"{kind} sample {number} {modality} cluster counts", counts[int(number)], found)


def checks(golden: Golden) -> Iterator[Row]:
    """All recorded samples of all language models."""
    yield from data_checks(golden)
    encoder = avhubert.load(golden, "large")
    for kind in kinds(golden):
        model = load_model(golden, kind)
        for sample in samples(golden, kind):
            yield from sample_checks(golden, model, kind, *sample)
            with torch.inference_mode():
                yield from encoder_checks(golden, encoder, kind, *sample)
        for name in golden.names(f"avsp/{kind}_sample*_grads.npz"):
            number = name.removeprefix(f"avsp/{kind}_sample").removesuffix("_grads.npz")
            if "encoder" not in number:
                yield from gradient_checks(golden, model, kind, number)
        yield from packing_checks(golden, model, kind)
