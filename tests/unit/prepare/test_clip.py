"""Sound of other forms than the corpus's own becomes 16 kHz mono, whatever file it is in."""

import wave

import numpy as np
import pytest

from viavsp_jax.prepare.recordings.clip import read_speech

SECONDS, TONE = 1, 440.0


@pytest.mark.parametrize(("rate", "channels", "width"), [(8000, 1, 2), (16_000, 2, 2), (48_000, 2, 2), (16_000, 1, 1)])
def test_wav_files_of_other_forms(tmp_path, rate, channels, width):
    values = np.sin(2 * np.pi * TONE * np.arange(SECONDS * rate) / rate)
    samples = (values * 100 + 128).astype(np.uint8) if width == 1 else (values * 10_000).astype("<i2")
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(np.repeat(samples, channels).tobytes())
    found = read_speech(str(tmp_path / "a.wav"))
    assert found.dtype == np.int16 and abs(len(found) - SECONDS * 16_000) < 64
    spectrum = np.abs(np.fft.rfft(found[:16_000].astype(float), 16_000))
    assert np.argmax(spectrum) == TONE
    loudness = 10_000 if width == 2 else 100 * 256
    assert np.sqrt(np.square(found[2000:14_000].astype(float)).mean()) == pytest.approx(loudness / 2**0.5, rel=0.03)
