"""Processes that see several devices on the CPU."""

import os


def with_devices(count: int) -> dict[str, str]:
    """The environment of the tests, with so many devices and with the helpers to import."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={count}"
    return os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": f"tests/helpers:.:{os.environ['PYTHONPATH']}"}
