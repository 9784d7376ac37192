"""The code by which transformers loads exports, which they carry: convert/hub, and what it shares with the package."""

import pathlib

from viavsp_jax.data import compression, features, prompt_ids, units
from viavsp_jax.decoding import alignment, nbest
from viavsp_jax.prepare.features import modeling_avhubert

_HUB = pathlib.Path(__file__).parent / "hub"
_SHARED = {
    "alignment_viavsp": alignment,
    "compression_viavsp": compression,
    "feature_extraction_viavsp": features,
    "modeling_avhubert": modeling_avhubert,
    "nbest_viavsp": nbest,
    "prompt_viavsp": prompt_ids,
    "units_viavsp": units,
}  # with the package


def code_files() -> dict[str, bytes]:
    """Each file of code that an export carries, by its name there; files of the package import each other by it."""
    files = {file.name: file.read_bytes() for file in sorted(_HUB.glob("[a-z]*.py"))}
    for name, module in _SHARED.items():
        source = pathlib.Path(module.__file__).read_bytes()
        for other, imported in _SHARED.items():
            source = source.replace(f"from {imported.__name__} import".encode(), f"from .{other} import".encode())
        files[f"{name}.py"] = source
    return files
