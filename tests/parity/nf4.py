"""NF4: codes, scales and dequantised weights of bitsandbytes."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity.rows import Golden, Row, exact, worst
from viavsp_jax.models.nf4 import LEVELS, SCALE_LEVELS, dequantize, quantize

STATE = "quant_state.bitsandbytes__nf4"


def bitsandbytes_layout(stored: dict[str, jax.Array]) -> dict[str, np.ndarray]:
    """One layer's arrays as bitsandbytes keeps them, for a weight [O, I]; names are those of its quantisation state."""
    codes, scales, nested, offset = (np.asarray(stored[k]) for k in ("codes", "scales", "nested_scales", "offset"))
    return {
        "packed": codes.T.reshape(-1, 1),  # uint8[O·I/2, 1]
        "quant_map": LEVELS,
        "absmax": scales.T.reshape(-1),  # uint8[Q]
        "nested_absmax": nested,  # float32[⌈Q/256⌉]
        "nested_quant_map": SCALE_LEVELS,
        "nested_offset": offset,
    }


def checks(golden: Golden) -> Iterator[Row]:
    """Every recorded weight: quantised and read back."""
    info, arrays = golden.json("nf4/nf4.json"), golden.arrays("nf4/nf4.npz")
    for name in sorted({array.split(".")[0] for array in arrays}):
        original, settings = arrays[f"{name}.original_fp16"], info[name]["packed_json"]
        stored = jax.jit(quantize)(jnp.asarray(original).T)
        ours = bitsandbytes_layout(stored)
        yield worst(f"{name} {list(original.shape)} codes and scales", [
            exact(part, ours[part], arrays[f"{name}.{part}"])
            for part in ("packed", "absmax", "quant_map", "nested_absmax", "nested_quant_map")
        ] + [
            exact("offset", ours["nested_offset"], np.float32(settings["nested_offset"])),
            exact("state", arrays[f"{name}.{STATE}"].size, info[name]["state_dict_suffixes"][f"weight.{STATE}"][0][0]),
        ])  # fmt: skip
        weights = np.asarray(jax.jit(dequantize)(stored)).T.astype(np.float16)
        yield exact(f"{name} dequantised", weights, arrays[f"{name}.dequantized_fp16"])
