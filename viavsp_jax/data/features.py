"""From mouth video and speech to the encoder's two inputs.

Part of every export, so it needs NumPy only. Filterbank energies are those of python_speech_features.logfbank with 26
filters, which AV-HuBERT was trained on.

Letters: T video frames (25 a second), n audio samples (16,000 a second), F frames of 10 ms.
"""

import functools

import numpy as np

FRAME_RATE = 25
SAMPLE_RATE = 16_000
FRAME_SIZE = 96
CROP_SIZE = 88
CENTER = (FRAME_SIZE - CROP_SIZE) // 2  # top and left of the crop in the middle
NUM_FILTERS = 26
STACKED_FRAMES = 4  # filterbank frames in one video frame
AUDIO_DIM = STACKED_FRAMES * NUM_FILTERS  # values of one video frame
SAMPLES_PER_FRAME = SAMPLE_RATE // FRAME_RATE
VIDEO_MEAN, VIDEO_STD = 0.421, 0.165  # grey levels of 0..1 that AV-HuBERT was trained with
LAYER_NORM_EPSILON = 1e-5

_WINDOW, _STEP, _FFT = 400, 160, 512  # samples
_PRE_EMPHASIS = 0.97


def audio_features(samples: np.ndarray, num_frames: int, waveform: str = "int16") -> np.ndarray:
    """Speech int16[n] to the encoder's audio input float32[num_frames, 104].

    Natural-log energies of 26 mel filters each 10 ms, four stacked to one video frame, cut or padded with zeros to
    `num_frames`, then normalised frame by frame. With waveform "float" the samples are -1 to 1 and it is they that are
    cut or padded. The scale shifts all energies alike, which the norm takes away, but for the last frame, whose fourth
    part is zeros, and for digital silence. Raises ValueError for another waveform.
    """
    if waveform == "float":
        return layer_norm(stack(filterbank(align(samples, SAMPLES_PER_FRAME * num_frames) / 32768)))
    if waveform != "int16":
        raise ValueError(f"the waveform is {waveform!r}, expected int16 or float")
    return layer_norm(align(stack(filterbank(samples)), num_frames))


def filterbank(samples: np.ndarray) -> np.ndarray:
    """Natural-log mel energies of samples at any scale: [n] -> float32[F, 26]; computed in float64."""
    samples = samples.astype(np.float64)
    emphasized = np.append(samples[:1], samples[1:] - _PRE_EMPHASIS * samples[:-1])
    count = 1 + max(0, -(-(len(samples) - _WINDOW) // _STEP))
    padded = np.pad(emphasized, (0, max(0, (count - 1) * _STEP + _WINDOW - len(samples))))
    windows = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::_STEP][:count]
    power = np.square(np.abs(np.fft.rfft(windows, _FFT))) / _FFT
    energies = power @ _mel_filters().T
    return np.log(np.where(energies == 0, np.finfo(np.float64).eps, energies)).astype(np.float32)


@functools.cache
def _mel_filters() -> np.ndarray:
    """Triangles between 28 points at equal mel distances from 0 to 8,000 Hz: float64[26, 257]."""
    top = 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700)
    hertz = 700 * (10 ** (np.linspace(0, top, NUM_FILTERS + 2) / 2595) - 1)
    points = np.floor((_FFT + 1) * hertz / SAMPLE_RATE)
    left, middle, right = points[:-2, None], points[1:-1, None], points[2:, None]
    bins = np.arange(_FFT // 2 + 1)[None]
    rising, falling = (bins - left) / (middle - left), (right - bins) / (right - middle)
    return np.where((left <= bins) & (bins < middle), rising, np.where((middle <= bins) & (bins < right), falling, 0))


def stack(features: np.ndarray) -> np.ndarray:
    """Joins each four consecutive rows, zeros appended to fill the last: [F, 26] -> [ceil(F / 4), 104]."""
    missing = -len(features) % STACKED_FRAMES
    padded = np.pad(features, [(0, missing), (0, 0)])
    return padded.reshape(-1, STACKED_FRAMES * features.shape[1])


def align(values: np.ndarray, length: int) -> np.ndarray:
    """Cuts the end or appends zeros, so that audio has the video's length: [n, ...] -> [length, ...]."""
    return np.pad(values[:length], [(0, max(0, length - len(values)))] + [(0, 0)] * (values.ndim - 1))


def layer_norm(features: np.ndarray) -> np.ndarray:
    """Each row to mean 0 and variance 1, without weights: float32[T, C] -> the same; computed in float64."""
    features = features.astype(np.float64)
    centered = features - features.mean(1, keepdims=True)
    variance = np.square(centered).mean(1, keepdims=True)
    return (centered / np.sqrt(variance + LAYER_NORM_EPSILON)).astype(np.float32)


def video_input(frames: np.ndarray) -> np.ndarray:
    """Grey frames uint8[T, 96, 96] to the encoder's input: normalised centre crop, float32[T, 88, 88]."""
    return normalize(center_crop(frames))


def center_crop(frames: np.ndarray) -> np.ndarray:
    """The 88x88 pixels in the middle: uint8[T, 96, 96] -> uint8[T, 88, 88]."""
    return frames[:, CENTER : CENTER + CROP_SIZE, CENTER : CENTER + CROP_SIZE]


def normalize(frames: np.ndarray) -> np.ndarray:
    """Grey levels uint8[T, h, w] to the scale that AV-HuBERT was trained with, float32; computed in float64."""
    return ((frames / 255 - VIDEO_MEAN) / VIDEO_STD).astype(np.float32)
