"""transformers' pipeline for an export: a recording in, {"text": …} out.

Part of every export, see modeling_viavsp.py. With `trust_remote_code=True`, `pipeline("automatic-speech-recognition",
model=folder)` takes what follows. A model with a CTC head adds `words` to the text, with their times and confidence.

    "clip.wav"                                        a file of sound, or its bytes
    samples                                           int16[n], or floating [n] from -1 to 1; 16 kHz
    {"audio": one of these, "video": frames}          frames uint8[T, 96, 96]; either of them may be left out
    {"raw" or "array": samples, "sampling_rate": 16000}   as transformers and datasets have it

and, beside it, source_language, target_language and settings of the search, e.g. num_beams=5.
"""

import io
import pathlib
import wave
from typing import Any

import numpy as np
from transformers import Pipeline
from transformers.pipelines.audio_utils import ffmpeg_read
from transformers.utils import logging

from .feature_extraction_viavsp import FRAME_SIZE, SAMPLE_RATE, SAMPLES_PER_FRAME
from .language_model_viavsp import ExportError

log = logging.get_logger(__name__)


class ViAVSPPipeline(Pipeline):
    """See the module."""

    _load_tokenizer = _load_processor = _load_image_processor = _load_video_processor = _load_feature_extractor = False

    def _sanitize_parameters(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        return {}, options.pop("generate_kwargs", {}) | options, {}

    def preprocess(self, recording: Any) -> dict[str, np.ndarray]:
        """`audio` int16[n], `video` uint8[T, 96, 96], or one of them."""
        if not isinstance(recording, dict):
            recording = {"audio": recording}
        recording = dict(recording)
        rate = recording.pop("sampling_rate", SAMPLE_RATE)
        for name in ("raw", "array"):
            if name in recording:
                recording["audio"] = recording.pop(name)
        recording.pop("path", None)  # of datasets, beside the array
        given = {name: value for name, value in recording.items() if value is not None}
        if not given or given.keys() - {"audio", "video"}:
            raise ExportError(f"the recording has {', '.join(given) or 'nothing'}: expected audio, video or both")
        if rate != SAMPLE_RATE:
            raise ExportError(f"the sampling_rate is {rate}: expected {SAMPLE_RATE}")
        if "audio" in given:
            given["audio"] = _samples(given["audio"])
        if "video" in given:
            given["video"] = _frames(given["video"])
        frames = len(given["video"]) if "video" in given else -(-len(given["audio"]) // SAMPLES_PER_FRAME)
        if not frames:
            raise ExportError("the recording is empty: expected at least one frame")
        if frames > (longest := self.model.config.longest_clip):
            log.warning(f"the recording has {frames} frames, the model was trained on up to {longest}: cut it")
        return given

    def _forward(self, recording: dict[str, np.ndarray], **options: Any) -> list[dict[str, Any]]:
        clips = {name: [value] for name, value in recording.items()}
        return {"hypotheses": self.model.transcribe(**clips, **options)[0]}

    def postprocess(self, found: dict[str, Any]) -> dict[str, Any]:
        best = found["hypotheses"][0]
        return {name: best[name] for name in ("text", "score", "words") if name in best}


def _samples(audio: Any) -> np.ndarray:
    """int16[n] of what a pipeline may be given."""
    if isinstance(audio, str | pathlib.Path):
        try:
            audio = pathlib.Path(audio).read_bytes()
        except OSError as error:
            raise ExportError(f"{audio}: {error.strerror}, expected a file of sound") from None
    if isinstance(audio, bytes):
        audio = _decoded(audio)
    audio = np.asarray(audio)
    if audio.ndim != 1 or audio.dtype != np.int16 and not np.issubdtype(audio.dtype, np.floating):
        raise ExportError(f"the audio is {audio.dtype}{list(audio.shape)}: expected 16 kHz mono, int16[n] or floating")
    if audio.dtype == np.int16:
        return audio
    if not np.isfinite(audio).all():
        raise ExportError("the audio holds values that are no finite numbers")
    return np.clip(np.round(audio * 32768.0), -32768, 32767).astype(np.int16)


def _decoded(content: bytes) -> np.ndarray:
    """A file's sound; all but plain WAV is read by the program ffmpeg."""
    try:
        with wave.open(io.BytesIO(content)) as file:
            if (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, SAMPLE_RATE):
                return np.frombuffer(file.readframes(file.getnframes()), "<i2")
    except (wave.Error, EOFError):
        pass
    return ffmpeg_read(content, SAMPLE_RATE)


def _frames(video: Any) -> np.ndarray:
    video = np.asarray(video)
    if video.dtype != np.uint8 or video.shape[1:] != (FRAME_SIZE, FRAME_SIZE):
        raise ExportError(f"the video is {video.dtype}{list(video.shape)}: expected mouth crops, uint8[T, 96, 96]")
    return video
