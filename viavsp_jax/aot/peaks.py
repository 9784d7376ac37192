"""What a device can do at most, as its maker says."""

import re

import jax

from viavsp_jax.aot.topology import CHIPS

# Dense bfloat16 FLOP/s, by what stands in the device's name; the first that matches.
PEAKS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L4": 121e12,
    "TPU v4": CHIPS["v4"].peak_flops,
    "TPU v5 lite": CHIPS["v5e"].peak_flops,
    "TPU v5": CHIPS["v5p"].peak_flops,
    "TPU v6 lite": CHIPS["v6e"].peak_flops,
}


def peak_flops(device: jax.Device) -> float | None:
    """FLOP/s in bfloat16, when they are known."""
    return next((peak for name, peak in PEAKS.items() if re.search(rf"\b{name}\b", device.device_kind)), None)
