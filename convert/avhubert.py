"""The AV-HuBERT encoder's weights between an encoder folder, which PyTorch reads, and the Flax model.

PyTorch's names are fairseq's. Letters: N blocks (stacked on axis 0 here), I input width, O output width.
"""

import functools
import json

import numpy as np
import safetensors
from etils import epath
from flax import nnx, traverse_util

from convert.names import REFERENCE_ENCODER, Tensor, Tree, check_shapes, flatten, in_their_layout, located
from convert.safetensors_files import DTYPES
from viavsp_jax import encoder_folder
from viavsp_jax.models.avhubert.config import AVHubertConfig
from viavsp_jax.models.avhubert.encoder import AVHubert
from viavsp_jax.models.avhubert.positional import weight_norm
from viavsp_jax.runtime.errors import InputError

# The weights of each kind of module: our name, PyTorch's, and which of its axes ours are (None: the same).
LINEAR = (("kernel", "weight", (1, 0)), ("bias", "bias", None))
NORM = (("scale", "weight", None), ("bias", "bias", None))
STATISTICS = (
    ("mean", "running_mean", None),
    ("var", "running_var", None),
    ("num_batches", "num_batches_tracked", None),
)
BATCH_NORM = NORM + STATISTICS
PRELU = (("slope", "weight", None),)
CONV_2D = (("kernel", "weight", (2, 3, 1, 0)),)
CONV_3D = (("kernel", "weight", (3, 4, 2, 1, 0)),)
POSITIONAL_CONV = (("v", "weight_v", (2, 1, 0)), ("g", "weight_g", (2, 1, 0)), ("bias", "bias", None))

_LARGEST_HEADER = 100 * 2**20  # that safetensors reads, too
_VIDEO = "feature_extractor_video"
_BLOCK = "encoder.layers.{layer}"

# Our module, PyTorch's, and its kind. Names with {layer} are one module for each block there and one stack here.
MODULES = (
    ("audio", "feature_extractor_audio.proj", LINEAR),
    ("video/frontend", f"{_VIDEO}.resnet.frontend3D.0", CONV_3D),
    ("video/frontend/norm", f"{_VIDEO}.resnet.frontend3D.1", BATCH_NORM),
    ("video/frontend/relu", f"{_VIDEO}.resnet.frontend3D.2", PRELU),
    *(
        (f"video/stage{stage}/block{block}/{ours}", f"{_VIDEO}.resnet.trunk.layer{stage}.{block - 1}.{theirs}", kind)
        for stage in (1, 2, 3, 4)
        for block in (1, 2)
        for ours, theirs, kind in (
            ("conv1", "conv1", CONV_2D),
            ("norm1", "bn1", BATCH_NORM),
            ("relu1", "relu1", PRELU),
            ("conv2", "conv2", CONV_2D),
            ("norm2", "bn2", BATCH_NORM),
            ("relu2", "relu2", PRELU),
            ("shortcut/conv", "downsample.0", CONV_2D),
            ("shortcut/norm", "downsample.1", BATCH_NORM),
        )
    ),
    ("video/proj", f"{_VIDEO}.proj", LINEAR),
    ("fusion_norm", "layer_norm", NORM),
    ("fusion_proj", "post_extract_proj", LINEAR),
    ("positional_conv", "encoder.pos_conv.0", POSITIONAL_CONV),
    ("blocks/attention_norm", f"{_BLOCK}.self_attn_layer_norm", NORM),
    ("blocks/q", f"{_BLOCK}.self_attn.q_proj", LINEAR),
    ("blocks/k", f"{_BLOCK}.self_attn.k_proj", LINEAR),
    ("blocks/v", f"{_BLOCK}.self_attn.v_proj", LINEAR),
    ("blocks/o", f"{_BLOCK}.self_attn.out_proj", LINEAR),
    ("blocks/ffn_norm", f"{_BLOCK}.final_layer_norm", NORM),
    ("blocks/up", f"{_BLOCK}.fc1", LINEAR),
    ("blocks/down", f"{_BLOCK}.fc2", LINEAR),
    ("transformer_norm", "encoder.layer_norm", NORM),
)

TABLE = {
    f"{our_module}/{ours}": (f"{their_module}.{theirs}", axes)
    for our_module, their_module, kind in MODULES
    for ours, theirs, axes in kind
}


def tensors(params: Tree) -> list[Tensor]:
    """All PyTorch tensors that hold the weights of `params`, a nested dict of things with a shape.

    Raises InputError that lists all our paths without a line in the table.
    """
    return located(params, TABLE, lambda path, name: REFERENCE_ENCODER + name, "a name in the PyTorch encoder")


def abstract_params(config: AVHubertConfig) -> Tree:
    """Shapes and dtypes (jax.ShapeDtypeStruct) of the Flax encoder's weights; nothing is computed."""
    return nnx.to_pure_dict(nnx.state(_abstract(config)))


@functools.cache  # an encoder is asked for again and again: by the check, by training, by its export
def _abstract(config: AVHubertConfig) -> AVHubert:
    return nnx.eval_shape(lambda: AVHubert(config, dtype=np.float32, rngs=nnx.Rngs(0)))


def load_flax(folder: epath.PathLike, fold: bool = False) -> tuple[AVHubertConfig, Tree]:
    """Reads config.json and model.safetensors, as `convert.from_avhubert` wrote them.

    Returns the config and the weights of `AVHubert(config, fold=fold)`: a nested dict of numpy arrays in the form of
    nnx.to_pure_dict, float32 (int32 for BatchNorm's counters). `nnx.merge(structure, weights)` takes them.

    Raises InputError if a file is missing or damaged, if names or shapes do not fit the config (all are listed),
    or if a weight is not finite.
    """
    folder = epath.Path(folder)
    config = encoder_folder.read_config(folder)
    path = folder / "model.safetensors"
    read = read_weights(path)
    abstract = abstract_params(config)
    wanted = tensors(abstract)
    shapes = {name: value.shape for name, value in read.items()}
    wanted_shapes = {tensor.name: tensor.shape for tensor in wanted}
    check_shapes(wanted_shapes, shapes, str(path), "holds other shapes than config.json says")
    weights = {name: np.empty(value.shape, value.dtype) for name, value in flatten(abstract).items()}
    for tensor in wanted:
        value = read.pop(tensor.name)
        if not np.isfinite(value).all():
            raise InputError(f"{path}: {tensor.name} holds values that are not finite numbers")
        weights[tensor.path][tensor.index] = tensor.to_ours(value)
    if fold:
        v, g = (weights.pop(f"positional_conv/{name}") for name in "vg")
        weights["positional_conv/kernel"] = np.asarray(weight_norm(v, g))
    return config, traverse_util.unflatten_dict(weights, sep="/")


def check_flax(folder: epath.PathLike, config: AVHubertConfig) -> None:
    """Raises InputError as `load_flax` does for names, shapes and a file that is cut off; reads no weights."""
    path = epath.Path(folder) / encoder_folder.WEIGHTS_FILE
    wanted = {tensor.name: tensor.shape for tensor in tensors(abstract_params(config))}
    check_shapes(wanted, _stored_shapes(path), str(path), "holds other shapes than config.json says")


def _stored_shapes(path: epath.Path) -> dict[str, tuple[int, ...]]:
    """Those that the header of a safetensors file says. Raises InputError if it is missing, damaged or cut off."""
    if not path.exists():
        raise InputError(f"{path}: no such file, expected the weights of an AV-HuBERT encoder")
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _LARGEST_HEADER:
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        size = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if path.stat().length != size:
            raise ValueError(f"it has {path.stat().length} bytes, expected {size}")
        return {name: tuple(entry["shape"]) for name, entry in header.items()}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error})") from error


def read_weights(path: epath.Path) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file. Raises InputError if it is missing, damaged or of other types."""
    if not path.exists():
        raise InputError(f"{path}: no such file, expected the weights of an AV-HuBERT encoder")
    try:
        entries = dict(safetensors.deserialize(path.read_bytes()))
    except safetensors.SafetensorError as error:
        raise InputError(f"{path}: not a readable safetensors file ({error})") from error
    if other := sorted({entry["dtype"] for entry in entries.values()} - DTYPES.keys()):
        raise InputError(f"{path} holds weights of type {', '.join(other)}, expected one of {', '.join(DTYPES)}")
    return {
        name: np.frombuffer(entry["data"], DTYPES[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in entries.items()
    }


def to_torch_names(params: Tree) -> dict[str, np.ndarray]:
    """The Flax encoder's weights (nnx.to_pure_dict form) by PyTorch's names, in its layout and dtypes."""
    return {
        # PyTorch counts BatchNorm's batches in int64.
        tensor.name: value.astype(np.int64) if np.issubdtype(value.dtype, np.integer) else value
        for tensor, value in in_their_layout(params, tensors(params))
    }
