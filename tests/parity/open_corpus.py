"""The open corpus's clips → what the encoder hears."""

from collections.abc import Iterator

import numpy as np

from tests.parity.rows import MODULE, Golden, Row, close
from viavsp_jax.data.features import audio_features


def feature_checks(golden: Golden) -> Iterator[Row]:
    """Audio features of both waveforms, from the samples as they were decoded."""
    recorded = golden.arrays("vicocktail/features.npz")
    for number, clip in enumerate(recorded["clips"]):
        samples = recorded[f"waveform_{number}"] * 32768
        as_floats, as_int16 = recorded[f"audio_open_{number}"], recorded[f"audio_reference_{number}"]
        rounded = np.clip(np.round(samples), -32768, 32767).astype(np.int16)
        yield close(f"{clip}, floats", audio_features(samples, len(as_floats), "float"), as_floats, MODULE)
        yield close(f"{clip}, int16", audio_features(rounded, len(as_int16), "int16"), as_int16, MODULE)


def checks(golden: Golden) -> Iterator[Row]:
    """Everything recorded of the corpus."""
    yield from feature_checks(golden)
