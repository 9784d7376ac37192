"""Decodes a shard folder with an exported model in PyTorch: transformers and peft, no JAX.

    python -m convert.decode_hf --model HF_DIR --data SHARDS [--modality av|audio|video] [--split test] [--merged]
        [--device cuda]

SHARDS may end with _pool3, _max2 or _clusters, as names in config.evaluate.names do: then frames are averaged in that
way, else as the export says. An export with an encoder of its own decodes shards of media, and takes their clips by
--modality; any other one decodes shards of features. Prints word and character error rates and writes a table of
hypotheses.

Letters: T frames, E encoder width.
"""

import argparse
import json
import pathlib

import numpy as np
import torch
from tqdm import tqdm

from convert.hub.configuration_viavsp import ViAVSPConfig
from convert.hub.language_model_viavsp import ExportError
from convert.hub.modeling_viavsp import ViAVSPModel
from viavsp_jax.data import media
from viavsp_jax.data.compression import Compression, split_name
from viavsp_jax.data.examples import FEATURES, MEDIA, MODALITIES, Example
from viavsp_jax.data.features import audio_features, video_input
from viavsp_jax.data.records import SplitSource, complete_splits, open_split
from viavsp_jax.data.sources import check_clusters
from viavsp_jax.evaluation.scoring import normalize, score
from viavsp_jax.runtime.errors import InputError, reported_to_user
from viavsp_jax.runtime.options import new_file, whole
from viavsp_jax.runtime.tables import write_table
from viavsp_jax.settings import check_decoding


def read_config(folder: str) -> ViAVSPConfig:
    """config.json of an export. Raises InputError if there is none, or it is of something else."""
    path = pathlib.Path(folder) / "config.json"
    if not path.exists():
        raise InputError(f"{path} does not exist: expected an export of python -m convert.to_hf")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a JSON file ({error})") from None
    if not isinstance(settings, dict) or settings.get("model_type") != ViAVSPConfig.model_type:
        raise InputError(f"{path} is not that of an export of python -m convert.to_hf")
    try:
        check_decoding(settings["decoding"])
        Compression.of(settings.get("compression", "clusters"))
        return ViAVSPConfig.from_pretrained(folder)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is not that of an export of python -m convert.to_hf: {error!r}") from None


def check_device(device: str) -> None:
    """Raises InputError when there is no such device."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # as PyTorch says that it was built without one
        raise InputError(f"--device {device} is not usable here ({str(error).splitlines()[0]})") from None


def load_model(folder: str, llm: str | None, merged: bool, device: str, dtype: torch.dtype | None) -> ViAVSPModel:
    """Loads an export of `convert.to_hf`, by this project's own code, whatever code lies in the folder.

    Args:
      folder, merged: of the export; whether to use its `merged/` in place of base and adapter.
      llm: the Hugging Face folder of the base language model; None: where it was when it was converted.
      device, dtype: cpu or cuda; of the weights, None: that of the training.

    Raises InputError when a part of the export is missing, or there is no such device.
    """
    check_device(device)
    try:
        return ViAVSPModel.from_pretrained(
            folder, config=read_config(folder), base_model=llm, merged=merged, device_map=device, dtype=dtype
        )
    except ExportError as error:
        raise InputError(f"{error}" + (" with --llm" if "base language model" in str(error) else "")) from None


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


def with_features(model: ViAVSPModel, modality: str, clips: list[Example], folder: str) -> list[Example]:
    """Examples of media as those of features: `features` float32[T, E] and `cluster_counts` of the modality.

    Raises InputError if a video cannot be decoded or has not as many frames as its counts sum to.
    """
    heard, seen, lengths = [], [], []
    for clip in clips:
        where = f"{folder}: the video of {clip['id']!r}"
        frames, expected = media.decode_video(clip["video"], where), clip[f"cluster_counts_{modality}"].sum()
        if len(frames) != expected:
            raise InputError(f"{where} has {len(frames)} frames, expected {expected}, as its cluster counts sum to")
        heard.append(audio_features(clip["audio"], len(frames), model.encoder.waveform))
        seen.append(video_input(frames))
        lengths.append(len(frames))
    _, final = model.encoder.encode_clips(heard, seen, lengths, (modality,), None)[modality]
    return [
        clip | {"features": features[:length].float().cpu(), "cluster_counts": clip[f"cluster_counts_{modality}"]}
        for clip, features, length in zip(clips, final, lengths, strict=True)
    ]


def decode(
    model: ViAVSPModel,
    source: SplitSource,
    batch_size: int,
    modality: str = "av",
    compression: Compression | None = None,
) -> list[dict[str, str | float]]:
    """Decodes all clips as the training's config says: rows of id, reference, hypothesis and its score, by id.

    `modality` says how an encoder that was trained takes them, `compression` how frames become positions (None: as the
    export says). Raises InputError when features have another width than the model was trained on or no clusters that
    are needed, and for a video that cannot be decoded.
    """
    config = model.config
    compression = compression or Compression.of(config.compression)
    check_clusters(source.folder, compression)
    if not config.trained_encoder and source.width != config.feature_width:
        raise InputError(
            f"{source.folder} holds features of width {source.width}, the model expects {config.feature_width}"
        )
    torch.manual_seed(config.decoding.get("seed", 0))
    rows = []
    with tqdm(total=len(source), desc="decoding", unit="clip") as progress:
        for start in range(0, len(source), batch_size):
            examples = [source[i] for i in range(start, min(start + batch_size, len(source)))]
            if config.trained_encoder:
                examples = with_features(model, modality, examples, source.folder)
            features = [torch.tensor(np.asarray(example["features"])) for example in examples]
            counts = [torch.tensor(compression.run_lengths(example["cluster_counts"])) for example in examples]
            languages = [(example["source_language"], example["target_language"]) for example in examples]
            found = model.recognize(features, counts, languages)
            for example, hypotheses in zip(examples, found, strict=True):
                best = hypotheses[0]
                rows.append({
                    "id": example["id"],
                    "reference": normalize(example["transcript"]),
                    "hypothesis": normalize(best["text"]),
                    "score": round(best["score"], 4),
                })  # fmt: skip
            progress.update(len(examples))
    return sorted(rows, key=lambda row: row["id"])


@reported_to_user()
def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m convert.decode_hf", description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, metavar="HF_DIR", help="an export of convert.to_hf")
    parser.add_argument("--data", required=True, metavar="SHARDS", help="a shard folder, see above")
    parser.add_argument("--modality", choices=MODALITIES, help="how to take clips of media shards (default: av)")
    parser.add_argument("--split", default="test")
    parser.add_argument("--llm", metavar="HF_LLM", help="the base language model (default: as recorded in the export)")
    parser.add_argument("--merged", action="store_true", help="use the merged model of the export")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: that of the training")
    parser.add_argument("--batch_size", type=whole("--batch_size", 1), default=16)
    parser.add_argument(
        "--output",
        type=new_file("--output"),
        default="hypotheses.tsv",
        help="the table to write (default: hypotheses.tsv)",
    )
    args = parser.parse_args()
    trained_encoder = read_config(args.model).trained_encoder
    data, compression = split_name(args.data.rstrip("/"))
    source = open_data(data, args.split, trained_encoder)
    if args.modality and not trained_encoder:
        raise InputError(
            f"--modality {args.modality} is for shards of media only: {args.data} holds features of one modality"
        )
    dtype = getattr(torch, args.dtype) if args.dtype else None
    model = load_model(args.model, args.llm, args.merged, args.device, dtype)
    rows = decode(model, source, args.batch_size, args.modality or "av", compression)
    write_table(args.output, rows)
    rates = score([row["reference"] for row in rows], [row["hypothesis"] for row in rows])
    print(json.dumps(rates, indent=2))


if __name__ == "__main__":
    main()
