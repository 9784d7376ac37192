"""What drivers write while devices are looked for."""

import os

import jax
import pytest

from viavsp_jax.runtime.backends import start_devices


class Device:
    def __init__(self, platform):
        self.platform = platform


@pytest.mark.parametrize(("platform", "said"), [("cpu", False), ("gpu", False), ("tpu", True), (None, True)])
def test_complaints_are_kept_back_unless_they_matter(monkeypatch, capfd, platform, said):
    def devices():
        os.write(2, b"no accelerator type\n")  # as a library in C does
        if platform is None:
            raise RuntimeError("no devices")
        return [Device(platform)]

    monkeypatch.setattr(jax, "devices", devices)
    if platform is None:
        with pytest.raises(RuntimeError):
            start_devices()
    else:
        start_devices()
    os.write(2, b"afterwards\n")
    assert capfd.readouterr().err == "no accelerator type\n" * said + "afterwards\n"
