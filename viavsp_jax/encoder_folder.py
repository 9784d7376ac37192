"""Folders of AV-HuBERT encoders, as convert.from_avhubert writes them: config.json beside the weights."""

import dataclasses
import json

from etils import epath

from viavsp_jax.models.avhubert.config import AVHubertConfig
from viavsp_jax.runtime.atomic import write_bytes
from viavsp_jax.runtime.errors import InputError

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
_OPTIONAL = {"final_norm", "waveform"}  # which earlier versions did not write


def read_config(folder: epath.PathLike) -> AVHubertConfig:
    """The sizes of a folder's encoder. Raises InputError if the file is missing, not JSON or not usable."""
    path = epath.Path(folder) / CONFIG_FILE
    if not path.exists():
        raise InputError(f"{path}: no such file, expected the config of an AV-HuBERT encoder")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a JSON file ({error})") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a JSON object with the fields of an AV-HuBERT config")
    names = {field.name for field in dataclasses.fields(AVHubertConfig)}
    missing, unknown = names - _OPTIONAL - values.keys(), values.keys() - names
    if missing or unknown:
        raise InputError(
            f"{path}: not the config of an AV-HuBERT encoder; missing {sorted(missing)}, unknown {sorted(unknown)}"
        )
    try:
        return AVHubertConfig(**values)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error


def write_config(config: AVHubertConfig, folder: epath.PathLike) -> None:
    """Writes the file that `read_config` reads."""
    content = json.dumps(dataclasses.asdict(config), indent=2) + "\n"
    write_bytes(epath.Path(folder) / CONFIG_FILE, content.encode())
