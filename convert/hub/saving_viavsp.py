"""A loaded model as an export again.

Part of every export, see modeling_viavsp.py.
"""

import copy
import dataclasses
import json
import os
import pathlib
import shutil
import tempfile
from typing import Any

from huggingface_hub import HfApi
from safetensors.torch import save_file
from torch import Tensor, nn

from .configuration_viavsp import CODE
from .ctc_viavsp import FILE as CTC_FILE
from .ctc_viavsp import UNITS
from .language_model_viavsp import ExportError

_HEADER = {"format": "pt"}
# The parts that some exports have and others not.
_PARTS = ("adapter", "merged", "encoder", "cluster_encoder", "kmeans.safetensors", CTC_FILE, UNITS)


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a model was loaded from."""

    root: pathlib.Path  # of the export
    merged: bool  # whether the language model has the adapter folded in
    base: str  # folder or name of the language model


def save(model: Any, folder: str | os.PathLike, max_shard_size: int | str) -> None:
    """Writes all parts of a ViAVSPModel, as its weights are now, in place of an earlier export or of nothing.

    Raises ExportError before anything is written if something else is there.
    """
    folder = pathlib.Path(folder).absolute()
    if model.origin is None:
        raise ExportError("the model was put together by hand: expected one of from_pretrained")
    if model.origin.merged and getattr(model, "is_quantized", False):
        raise ExportError("the merged language model was quantized when it was loaded: expected one that was not")
    if folder.exists() and not folder.is_dir():
        raise ExportError(f"{folder} is a file: expected a folder, or none yet")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "projector.safetensors").exists():
        raise ExportError(f"{folder} is not empty and no earlier export: expected an empty folder, or none yet")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside it, since weights of the earlier export may still be read from its files.
    with tempfile.TemporaryDirectory(prefix=".", suffix=".partial", dir=folder.parent) as scratch:
        partial = pathlib.Path(scratch)
        _write(model, partial, max_shard_size)
        folder.mkdir(exist_ok=True)
        for name in {*_PARTS, *os.listdir(partial)}:
            if (folder / name).is_dir() and not (folder / name).is_symlink():
                shutil.rmtree(folder / name)
            else:
                (folder / name).unlink(missing_ok=True)
        for path in partial.iterdir():
            path.rename(folder / path.name)


def upload_export(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    **commit: Any,
) -> Any:
    """Uploads a folder to the hub, with its own README.md; `commit` is for huggingface_hub's upload_folder."""
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    return api.upload_folder(repo_id=repo_id, folder_path=folder, **commit)


def _write(model: Any, folder: pathlib.Path, max_shard_size: int | str) -> None:
    if model.origin.merged:
        model.llm.save_pretrained(folder / "merged", max_shard_size=max_shard_size)
        model.tokenizer.save_pretrained(folder / "merged")
    else:
        _write_adapter(model, folder / "adapter")
    projector = {f"avfeat_to_llm.{name}": value for name, value in model.projector.state_dict().items()}
    _save(projector, folder / "projector.safetensors")
    if model.ctc is not None:
        _save(model.ctc.state_dict(), folder / CTC_FILE)
        shutil.copy(model.origin.root / UNITS, folder)
    if model.encoder is not None:
        _write_encoder(model.encoder, model.config, folder / "encoder")
    if model.cluster_encoder is not model.encoder:
        _write_encoder(model.cluster_encoder, model.config, folder / "cluster_encoder")
    if model.centers is not None:
        centers = {"centers": model.centers.float()}
        _save(centers, folder / "kmeans.safetensors", {"layer": str(model.config.cluster_layer)})
    model.tokenizer.save_pretrained(folder)
    config = copy.deepcopy(model.config)
    vars(config).update(CODE)
    config.dtype = model.projector.weight.dtype
    (folder / "config.json").write_text(config.to_json_string(), encoding="utf-8")
    for file in (*sorted(model.origin.root.glob("*_*.py")), model.origin.root / "README.md"):
        if file.is_file():
            shutil.copy(file, folder)


def _write_adapter(model: Any, folder: pathlib.Path) -> None:
    """The folder that peft reads, with the base language model where it was found."""
    config = copy.deepcopy(model.llm.peft_config["default"])
    config.base_model_name_or_path = model.origin.base
    config.save_pretrained(folder)
    weights = {
        f"base_model.model.{name.replace('.default.', '.')}": value
        for name, value in model.llm.state_dict().items()
        if ".lora_" in name
    }
    _save(weights, folder / "adapter_model.safetensors")


def _write_encoder(encoder: nn.Module, config: Any, folder: pathlib.Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config.encoder, indent=2) + "\n", encoding="utf-8")
    _save(encoder.state_dict(), folder / "model.safetensors")


def _save(weights: dict[str, Tensor], path: pathlib.Path, header: dict[str, str] | None = None) -> None:
    save_file({name: value.contiguous().cpu() for name, value in weights.items()}, path, _HEADER | (header or {}))
