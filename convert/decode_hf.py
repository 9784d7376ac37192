"""Decodes a shard folder with an exported model in PyTorch: transformers and peft, no JAX.

    python -m convert.decode_hf --model HF_DIR --data SHARDS [--modality av|audio|video] [--split test] [--merged]
        [--device cuda]

An export with an encoder of its own decodes shards of media, and takes their clips by --modality; any other one
decodes shards of features. Prints word and character error rates and writes a table of hypotheses.

Letters: B clips, T frames, U segments, E encoder width, D LLM width.
"""

import argparse
import csv
import dataclasses
import importlib.util
import json
import pathlib
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file
from tqdm import tqdm
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
)

from viavsp_jax.data import media
from viavsp_jax.data.examples import FEATURES, MEDIA, MODALITIES
from viavsp_jax.data.prompt import Prompt, load_prompt
from viavsp_jax.data.records import Example, SplitSource, complete_splits, open_split
from viavsp_jax.decode import DecodingConfig, load_decoding_config
from viavsp_jax.errors import InputError, reported_to_user
from viavsp_jax.prepare.avhubert_torch import load_encoder
from viavsp_jax.prepare.encoder_torch import TorchEncoder
from viavsp_jax.prepare.reading import Media
from viavsp_jax.scoring import normalize, score


@dataclasses.dataclass(frozen=True)
class ExportedModel:
    """An exported model, ready to decode."""

    llm: torch.nn.Module
    projector: torch.nn.Linear
    prompt: Prompt
    feature_width: int
    decoding: DecodingConfig
    encoder: TorchEncoder | None = None  # where it was trained


def generation_config(decoding: DecodingConfig, prompt: Prompt) -> GenerationConfig:
    """The same search in transformers, all but the repetition penalty: see `decode`."""
    settings = dataclasses.asdict(decoding)
    del settings["seed"], settings["repetition_penalty"]
    if decoding.num_beams == 1:  # settings that would not count are warned of
        del settings["early_stopping"], settings["length_penalty"]
    if not decoding.do_sample:
        del settings["top_k"], settings["top_p"]
    return GenerationConfig(
        **settings, bos_token_id=prompt.begin_id, eos_token_id=prompt.end_id, pad_token_id=prompt.pad_id
    )


def load_llm(folder: pathlib.Path, quantization: str, device: str, dtype: torch.dtype) -> PreTrainedModel:
    """The base language model, stored as in the training; InputError when a part of it or bitsandbytes is missing."""
    if not (folder / "config.json").exists():
        raise InputError(f"{folder} holds no config.json: give the folder of the base language model with --llm")
    if quantization == "none":
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map=device)
    if not importlib.util.find_spec("bitsandbytes"):
        raise InputError("the adapter was trained on nf4 weights: pip install bitsandbytes, or export with --merge")
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    # As stored: rounded to another dtype first, the weights would get other codes than in the training.
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", quantization_config=nf4, device_map=device)
    return in_compute_dtype(model)


def in_compute_dtype(model: PreTrainedModel) -> PreTrainedModel:
    """The model, whose 4-bit layers then multiply in the dtype that they were given.

    On CPUs with instructions for it, bitsandbytes else takes bfloat16, whatever it was told.
    """
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
    return model


def read_settings(folder: str) -> dict[str, Any]:
    """viavsp.json of an export. Raises InputError if there is none."""
    path = pathlib.Path(folder) / "viavsp.json"
    if not path.exists():
        raise InputError(f"{path} does not exist: expected an export of python -m convert.to_hf")
    # Earlier versions trained no encoder.
    return {"trained_encoder": False} | json.loads(path.read_text())


def load_model(folder: str, llm: str | None, merged: bool, device: str, dtype: torch.dtype | None) -> ExportedModel:
    """Loads an export of `convert.to_hf`.

    Args:
      folder: the export.
      llm: the Hugging Face folder of the base language model; None: where it was when it was converted.
      merged: use `merged/` in place of base and adapter.
      device: cpu or cuda.
      dtype: of the weights; None: that of the training.

    Raises InputError when a part of the export is missing.
    """
    root, settings = pathlib.Path(folder), read_settings(folder)
    for name in ("projector.safetensors", "merged" if merged else "adapter"):
        if not (root / name).exists():
            raise InputError(f"{root / name} does not exist: expected an export of python -m convert.to_hf")
    prompt = load_prompt(root, settings["end_token"])
    dtype = dtype or getattr(torch, settings["dtype"])
    if merged:
        model = load_llm(root / "merged", "none", device, dtype)
    else:
        base = llm or json.loads((root / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
        quantization = settings["config"]["llm"]["quantization"]
        model = PeftModel.from_pretrained(load_llm(pathlib.Path(base), quantization, device, dtype), root / "adapter")
        model = model.base_model.model
    # Replaces the base model's own, so that no repetition penalty or the like of it applies.
    decoding = load_decoding_config(settings["decoding"])
    model.generation_config = generation_config(decoding, prompt)
    weights = load_file(root / "projector.safetensors")
    projector = torch.nn.Linear(settings["feature_width"], model.config.hidden_size, dtype=dtype)
    projector.load_state_dict({name.removeprefix("avfeat_to_llm."): value for name, value in weights.items()})
    encoder = TorchEncoder(load_encoder(root / "encoder", dtype, device)) if settings["trained_encoder"] else None
    return ExportedModel(model.eval(), projector.to(device), prompt, settings["feature_width"], decoding, encoder)


def open_data(folder: str, split: str, trained_encoder: bool) -> SplitSource:
    """A split of a shard folder. Raises InputError if it is not of the kind that an export takes, or not readable."""
    kind, other = (MEDIA, FEATURES) if trained_encoder else (FEATURES, MEDIA)
    if pathlib.Path(folder).is_dir() and complete_splits(folder, other):
        raise InputError(
            f"{folder} holds features, but the export has an encoder of its own: expected shards of --kind media"
            if trained_encoder
            else f"{folder} holds media, but the export has no encoder of its own: expected shards of --kind features"
        )
    return open_split(folder, split, kind)


def with_features(encoder: TorchEncoder, modality: str, clips: list[Example], folder: str) -> list[Example]:
    """Examples of media as those of features: `features` float32[T, E] and `cluster_counts` of the modality.

    Raises InputError if a video cannot be decoded or has not as many frames as its counts sum to.
    """
    items = []
    for clip in clips:
        where = f"{folder}: the video of {clip['id']!r}"
        frames, expected = media.decode_video(clip["video"], where), clip[f"cluster_counts_{modality}"].sum()
        if len(frames) != expected:
            raise InputError(f"{where} has {len(frames)} frames, expected {expected}, as its cluster counts sum to")
        items.append(Media(frames, media.audio_features(clip["audio"], len(frames)), clip["video"], clip["audio"]))
    lengths = [len(item.frames) for item in items]
    _, final = encoder.encode(items, lengths, (modality,), 0)[modality]
    return [
        clip | {"features": features[:length], "cluster_counts": clip[f"cluster_counts_{modality}"]}
        for clip, features, length in zip(clips, encoder.to_host(final), lengths, strict=True)
    ]


def segment_means(features: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Means of runs of frames, summed in float32: [T, E] and int[U] (they sum to T) → float32[U, E]."""
    segments = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    sums = torch.zeros(len(counts), features.shape[1], device=features.device)
    return sums.index_add(0, segments, features.float()) / counts[:, None]


def embed(model: ExportedModel, examples: list[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """[instruction][speech] of each clip, padded on the left: embeddings [B, S, D] and attention mask int[B, S]."""
    device, dtype = model.projector.weight.device, model.projector.weight.dtype
    rows = []
    for example in examples:
        ids = model.prompt.instruction(example["source_language"], example["target_language"])
        text = model.llm.get_input_embeddings()(torch.tensor(ids, device=device))
        # Rounded to the compute dtype before the mean too, as in training.
        features = torch.tensor(example["features"], device=device).to(dtype)
        means = segment_means(features, torch.tensor(example["cluster_counts"], device=device).long())
        rows.append(torch.cat([text, model.projector(means.to(dtype))]))
    size = max(map(len, rows))
    x = torch.stack([torch.nn.functional.pad(row, (0, 0, size - len(row), 0)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows], device=device)
    mask = torch.arange(size, device=device)[None] >= size - lengths[:, None]
    return x, mask.long()


@torch.inference_mode()
def decode(model: ExportedModel, source: SplitSource, batch_size: int, modality: str = "av") -> list[dict[str, str]]:
    """Decodes all clips as the training's config says: rows of id, reference and hypothesis, by id.

    `modality` says how an encoder of the model takes them. Raises InputError when features have another width than
    the model was trained on, and for a video that cannot be decoded.
    """
    if model.encoder is None and source.width != model.feature_width:
        raise InputError(
            f"{source.folder} holds features of width {source.width}, the model expects {model.feature_width}"
        )
    # Given apart since generate's own would overlook as many generated tokens as a prompt has padding (transformers 5).
    processors = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(float(model.decoding.repetition_penalty))])
    torch.manual_seed(model.decoding.seed)
    rows = []
    with tqdm(total=len(source), desc="decoding", unit="clip") as progress:
        for start in range(0, len(source), batch_size):
            examples = [source[i] for i in range(start, min(start + batch_size, len(source)))]
            if model.encoder is not None:
                examples = with_features(model.encoder, modality, examples, source.folder)
            x, mask = embed(model, examples)
            # Positions follow from the mask: the first token of each clip has position 0.
            generated = model.llm.generate(inputs_embeds=x, attention_mask=mask, logits_processor=processors)
            for example, ids in zip(examples, generated, strict=True):
                reference, hypothesis = normalize(example["transcript"]), normalize(model.prompt.text(ids.tolist()))
                rows.append({"id": example["id"], "reference": reference, "hypothesis": hypothesis})
            progress.update(len(examples))
    return sorted(rows, key=lambda row: row["id"])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m convert.decode_hf", description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, metavar="HF_DIR", help="an export of convert.to_hf")
    parser.add_argument("--data", required=True, metavar="SHARDS", help="a shard folder")
    parser.add_argument("--modality", choices=MODALITIES, help="how to take clips of media shards (default: av)")
    parser.add_argument("--split", default="test")
    parser.add_argument("--llm", metavar="HF_LLM", help="the base language model (default: as recorded in the export)")
    parser.add_argument("--merged", action="store_true", help="use the merged model of the export")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: that of the training")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--output", default="hypotheses.tsv", help="the table to write (default: hypotheses.tsv)")
    args = parser.parse_args()
    with reported_to_user():
        trained_encoder = read_settings(args.model)["trained_encoder"]
        source = open_data(args.data, args.split, trained_encoder)
        if args.modality and not trained_encoder:
            raise InputError(
                f"--modality {args.modality} is for shards of media only: {args.data} holds features of one modality"
            )
        dtype = getattr(torch, args.dtype) if args.dtype else None
        model = load_model(args.model, args.llm, args.merged, args.device, dtype)
        rows = decode(model, source, args.batch_size, args.modality or "av")
    output = pathlib.Path(args.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    rates = score([row["reference"] for row in rows], [row["hypothesis"] for row in rows])
    print(json.dumps(rates, indent=2))


if __name__ == "__main__":
    main()
