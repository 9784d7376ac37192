"""Exports a training checkpoint in Hugging Face form.

    python -m convert.to_hf --workdir DIR --output HF_DIR [--step best|latest|N] [--llm FOLDER] [--encoder FOLDER]
        [--kmeans FILE] [--compression TEXT] [--merge]

HF_DIR is what `transformers.AutoModel.from_pretrained(HF_DIR, trust_remote_code=True)` loads: `config.json`, the code
of `convert/hub`, `adapter/` (for peft), `projector.safetensors`, the tokenizer and a model card; of a training with a
CTC head also `ctc.safetensors` and `ctc_units.json`. `encoder/` and `kmeans.safetensors` take it from media to text;
where the encoder was trained, clusters still come from the one it grew from, in `cluster_encoder/`. An export for
`pool:K` needs no clusters, and holds them only if --kmeans is given. With --merge it gets `merged/`: the language model
with the adapter folded in.
"""

import argparse
import contextlib
import dataclasses
import json
import pathlib
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath
from safetensors.numpy import save_file

from convert.avhubert import to_torch_names
from convert.export_code import code_files
from convert.from_hf import TOKENIZER_FILES, copy_files
from convert.hub.configuration_viavsp import CODE, ViAVSPConfig
from convert.hub.ctc_viavsp import FILE as CTC_FILE
from convert.merging import write_merged
from convert.model_card import model_card
from convert.names import Tree, in_their_layout, tensors
from convert.safetensors_files import HEADER
from convert.work_folder import WorkFolder, chosen_compression, encoder_weights, open_work_folder, training_shards
from viavsp_jax import encoder_folder
from viavsp_jax.data.compression import Compression
from viavsp_jax.data.prompt import Prompt, load_prompt
from viavsp_jax.data.units import Units
from viavsp_jax.data.vocabulary import read as read_units
from viavsp_jax.data.vocabulary import write as write_units
from viavsp_jax.decoding.calibration import Calibration
from viavsp_jax.encoder_folder import CONFIG_FILE, WEIGHTS_FILE
from viavsp_jax.models.avhubert.config import AVHubertConfig
from viavsp_jax.models.lora import LoRAConfig
from viavsp_jax.prepare.features.provenance import encoder_and_centers, longest_clip
from viavsp_jax.prepare.kmeans import load_centers
from viavsp_jax.runtime.atomic import check_writable
from viavsp_jax.runtime.errors import InputError, reported_to_user
from viavsp_jax.runtime.options import checkpoint_step, new_folder_on_disk
from viavsp_jax.runtime.startup import quiet_libraries


def check_output(output: pathlib.Path) -> None:
    """Raises InputError if something else than an earlier export, which would be overwritten, is there."""
    check_writable(output, folder=True)
    if output.exists() and any(output.iterdir()) and not (output / "projector.safetensors").exists():
        raise InputError(f"{output} is not empty and no earlier export: give another --output")


@contextlib.contextmanager
def replacing(output: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a new folder that becomes `output` when nothing failed."""
    partial = output.with_name(f"{output.name[:32]}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        shutil.rmtree(output, ignore_errors=True)
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def hugging_face_tensors(weights: Tree) -> dict[str, np.ndarray]:
    """All weights under their Hugging Face names and in that orientation."""
    return {tensor.name: value for tensor, value in in_their_layout(weights, tensors(weights))}


def write_adapter(folder: pathlib.Path, weights: Tree, lora: LoRAConfig, base: str) -> None:
    """Writes the folder that peft's PeftModel.from_pretrained reads; `weights` {"llm": ...} float32."""
    from peft import LoraConfig  # takes 4 s: it imports the compiler of PyTorch

    named = hugging_face_tensors(weights)
    alpha = int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=alpha,
        lora_dropout=lora.dropout,
        use_rslora=lora.rslora,
        target_modules=sorted({name.split(".")[-3] for name in named}),
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        inference_mode=True,
    )
    config.save_pretrained(folder)
    save_file(named, folder / "adapter_model.safetensors", HEADER)


def write_encoder(folder: pathlib.Path, config: AVHubertConfig, weights: Tree) -> None:
    """Writes the folder that avhubert_torch.load_encoder and convert.avhubert.load_flax read."""
    folder.mkdir()
    encoder_folder.write_config(config, folder)
    save_file(to_torch_names(weights), folder / WEIGHTS_FILE, HEADER)


def find_encoder_and_centers(
    opened: WorkFolder, encoder: epath.PathLike | None, kmeans: epath.PathLike | None, clustered: bool
) -> tuple[epath.Path, epath.Path | None] | None:
    """What the training's shards were made with; None, with a note to the user, if it is not where they say.

    Without `clustered` frames there are no centres, unless they are given; and nothing is needed of a trained encoder.

    Raises InputError if `kmeans` was asked for and does not do.
    """
    if opened.encoder and not (clustered or kmeans):
        return None
    try:
        return encoder_and_centers(training_shards(opened.settings.data), encoder, kmeans, clustered)
    except InputError as error:
        if kmeans:
            raise
        print(f"note: the export will not take media, only what an encoder made of it: {error}", file=sys.stderr)
        return None


def write_encoders(
    folder: pathlib.Path, opened: WorkFolder, trained: Tree | None, found: tuple[epath.Path, epath.Path | None] | None
) -> dict[str, Any]:
    """Writes the encoder, that of the clusters if it is another, and the centres; returns their part of config.json.

    `trained` are the weights of the encoder that was trained, None if none was.
    """
    settings = {"encoder": None, "trained_encoder": trained is not None, "cluster_layer": None}
    if trained is not None:
        write_encoder(folder / "encoder", opened.encoder, trained)
        settings["encoder"] = dataclasses.asdict(opened.encoder)
    if found:
        source, centers = found
        target = folder / ("encoder" if trained is None else "cluster_encoder")
        target.mkdir()
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            (source / name).copy(target / name)
        settings["encoder"] = dataclasses.asdict(encoder_folder.read_config(source))
        if centers:
            centers.copy(folder / "kmeans.safetensors")
            settings["cluster_layer"] = load_centers(str(folder / "kmeans.safetensors"))[1]
    return settings


def write_ctc(folder: pathlib.Path, head: Tree, vocabulary: Units) -> None:
    """Writes the CTC head and what it writes words in; `head` is float32, in our layout."""
    weights = {f"{name}.weight": np.ascontiguousarray(head[name].T) for name in ("hidden", "output")}
    weights |= {f"{name}.bias": np.asarray(head[f"{name}_bias"]) for name in ("hidden", "output")}
    save_file(weights, folder / CTC_FILE, HEADER)
    write_units(folder, vocabulary)


def write_config(
    folder: pathlib.Path,
    opened: WorkFolder,
    prompt: Prompt,
    encoders: dict[str, Any],
    compression: Compression,
    calibration: Calibration,
) -> None:
    """Writes config.json, the code that transformers loads the export with, and the tokenizer."""
    settings = opened.settings
    config = {
        "model_type": ViAVSPConfig.model_type,
        **CODE,
        "feature_width": settings.data.feature_width,
        "end_token": prompt.end_token,
        "other_end_ids": prompt.end_ids[1:],
        "decoding": dataclasses.asdict(settings.evaluation.decoding),
        "compression": str(compression),
        "quantization": settings.llm.quantization,
        "recognition_instruction": prompt.wording.recognition,
        "translation_instruction": prompt.wording.translation,
        "languages": prompt.wording.languages,
        "chat": prompt.wording.chat,
        "dtype": settings.dtype,
        "longest_clip": longest_clip(training_shards(settings.data)),
        "ctc": {"units": settings.ctc.units, "width": settings.ctc.width} if settings.ctc.weight else None,
        **dataclasses.asdict(calibration),
        **encoders,
        "step": opened.step,
        "llm_sha256": opened.conversion["sha256"],
        "training": opened.saved_config,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for name, source in code_files().items():
        (folder / name).write_bytes(source)
    copy_files(opened.llm, folder, TOKENIZER_FILES)


def export(
    workdir: epath.PathLike,
    output: str,
    step: str = "best",
    llm: epath.PathLike | None = None,
    merge: bool = False,
    encoder: epath.PathLike | None = None,
    kmeans: epath.PathLike | None = None,
    compression: str | None = None,
) -> None:
    """Writes the export; see the module's docstring.

    `llm` and `encoder` replace the config's folders: of the language model, and of what the shards were made with or a
    trained encoder grew from; `kmeans` is the file of the centres, where it does not lie where it did. `compression`
    replaces the config's for decoding.

    Raises InputError when there is no such checkpoint, no converted language model or no config of the encoder, or the
    shards of the training have no clusters that are needed.
    """
    output = pathlib.Path(output).absolute()
    check_output(output)
    opened = open_work_folder(workdir, step, llm, encoder)
    settings = opened.settings
    way = chosen_compression(opened, compression)
    trainable, batch_stats = opened.read_weights()
    saved_units = opened.checkpoints.restore_units(opened.step)
    opened.checkpoints.close()
    prompt = load_prompt(opened.llm, settings.llm.end_token, settings.prompt)
    grown_from = encoder or (opened.encoder_path if opened.encoder else None)
    found = find_encoder_and_centers(opened, grown_from, kmeans, way.by_clusters)
    trained = encoder_weights(trainable, batch_stats) if opened.encoder else None
    with replacing(output) as folder:
        write_adapter(folder / "adapter", {"llm": trainable["llm"]}, settings.lora, opened.conversion["source"])
        projector = hugging_face_tensors({"projector": trainable["projector"]})
        save_file(projector, folder / "projector.safetensors", HEADER)
        if "ctc" in trainable:
            write_ctc(folder, trainable["ctc"], read_units(workdir, saved_units))
        encoders = write_encoders(folder, opened, trained, found)
        write_config(folder, opened, prompt, encoders, way, opened.calibration)
        if merge:
            write_merged(folder / "merged", opened, {"llm": trainable["llm"]}, prompt)
        media = found is not None or (trained is not None and not way.by_clusters)
        card = model_card(opened, epath.Path(workdir), way, merge, media)
        (folder / "README.md").write_text(card, encoding="utf-8")


@reported_to_user()
def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m convert.to_hf", description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", required=True, help="the work folder of the training")
    parser.add_argument(
        "--output", type=new_folder_on_disk("--output"), required=True, metavar="HF_DIR", help="the folder to write"
    )
    parser.add_argument("--step", type=checkpoint_step, default="best", help="best, latest or a number (default: best)")
    parser.add_argument("--llm", metavar="FOLDER", help="the converted language model (default: the config's)")
    parser.add_argument(
        "--encoder", metavar="FOLDER", help="the encoder of the shards (default: its location during training)"
    )
    parser.add_argument(
        "--kmeans", metavar="FILE", help="the centres of the shards (default: their location during training)"
    )
    parser.add_argument(
        "--compression",
        metavar="TEXT",
        help="how frames become positions: clusters, clusters+max:K or pool:K (default: as the config decodes)",
    )
    parser.add_argument("--merge", action="store_true", help="also write the language model with the adapter in it")
    args = parser.parse_args()
    quiet_libraries()
    export(**vars(args))


if __name__ == "__main__":
    main()
