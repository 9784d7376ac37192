"""Folders of PyTorch AV-HuBERT encoders: config.json and model.safetensors, read and written."""

import safetensors
import safetensors.torch
import torch
from etils import epath
from torch import Tensor

from viavsp_jax import encoder_folder
from viavsp_jax.encoder_folder import WEIGHTS_FILE
from viavsp_jax.models.avhubert.config import AVHubertConfig
from viavsp_jax.prepare.features.modeling_avhubert import AVHubert
from viavsp_jax.runtime.errors import InputError

# In fairseq's checkpoints, but of use to masked pre-training only.
UNUSED_KEYS = ("mask_emb", "label_embs_concat", "final_proj.weight", "final_proj.bias")


def encoder_from_weights(config: AVHubertConfig, weights: dict[str, Tensor], source: str) -> AVHubert:
    """Builds the encoder around `weights` without copying them; `source` is named in errors.

    Raises InputError listing every missing, unknown or misshapen weight, and those that are not finite.
    """
    with torch.device("meta"):
        model = AVHubert(config)
    expected = model.state_dict()
    problems = [f"missing {name}" for name in sorted(expected.keys() - weights.keys())]
    problems += [f"unknown {name}" for name in sorted(weights.keys() - expected.keys())]
    problems += [
        f"{name} has shape {list(weights[name].shape)}, not {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    problems += [f"{name} is not finite" for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
    if problems:
        raise InputError(f"{source}: the weights do not fit the AV-HuBERT config: {'; '.join(problems)}")
    model.load_state_dict(weights, assign=True)
    return model


def load_encoder(
    folder: epath.PathLike, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> AVHubert:
    """Reads config.json and model.safetensors; returns the encoder in eval mode, weights cast to `dtype`.

    Raises InputError if a file is missing or unreadable, or if names or shapes do not fit the config.
    """
    folder = epath.Path(folder)
    config = encoder_folder.read_config(folder)
    path = folder / WEIGHTS_FILE
    if not path.exists():
        raise InputError(f"{path}: no such file, expected the weights of an AV-HuBERT encoder")
    try:
        weights = safetensors.torch.load(path.read_bytes())
    except safetensors.SafetensorError as error:
        raise InputError(f"{path}: not a readable safetensors file ({error})") from error
    return encoder_from_weights(config, weights, str(path)).to(device=device, dtype=dtype).eval()


def save_encoder(model: AVHubert, folder: epath.PathLike, dtype: torch.dtype = torch.float32) -> None:
    """Writes config.json and model.safetensors, floating weights as `dtype`.

    Raises InputError if a weight is too large for `dtype`.
    """
    folder = epath.Path(folder)
    weights = {}
    for name, tensor in model.state_dict().items():
        cast = tensor.to("cpu", dtype if tensor.is_floating_point() else tensor.dtype).contiguous()
        if not torch.isfinite(cast).all():
            raise InputError(f"{folder}: the weight {name} is not finite as {dtype}")
        weights[name] = cast
    folder.mkdir(parents=True, exist_ok=True)
    encoder_folder.write_config(model.config, folder)
    (folder / WEIGHTS_FILE).write_bytes(safetensors.torch.save(weights))
