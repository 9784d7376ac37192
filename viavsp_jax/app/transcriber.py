"""Files or arrays in, text with times out, by a training checkpoint or an export.

Letters: T video frames (25 a second), n audio samples (16,000 a second), U runs of frames.
"""

import dataclasses
import functools
import itertools
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from viavsp_jax.app import windows
from viavsp_jax.app.recognizer import Hypothesis, Recognizer, Utterance
from viavsp_jax.data import noise
from viavsp_jax.data.examples import MODALITIES
from viavsp_jax.data.features import FRAME_RATE, FRAME_SIZE, SAMPLES_PER_FRAME
from viavsp_jax.data.prompt import instruction_text
from viavsp_jax.prepare.recordings.mouth import MouthTrack, given_crops, mouth_crops
from viavsp_jax.prepare.recordings.recording import Recording, read_recording
from viavsp_jax.prepare.recordings.tracks import loudness
from viavsp_jax.runtime.atomic import check_utf_8
from viavsp_jax.runtime.errors import InputError
from viavsp_jax.settings import DTYPES, MAX_BEAMS

# Called with what is being done and the share of it that is done.
Progress = Callable[[str, float], None]

MAX_SNR = 100.0  # dB of noise, above or below: more is all of the one or of the other

_LOOSE_END = 5  # frames by which sound may be longer than the pictures without being read to its end
_LEAST_SHOWN = 0.5  # share of a window in which a mouth has to be shown for lips to be read
_FINDING, _READING = "finding the mouth", "reading lips and speech"


@dataclasses.dataclass(frozen=True)
class Segment:
    """What is said in one window."""

    first: int  # frame, 25 a second
    end: int  # the frame after its last
    hypotheses: tuple[Hypothesis, ...]  # best first
    run_lengths: np.ndarray  # int32[U], of frames that were averaged; they sum to end - first

    @property
    def text(self) -> str:
        return self.hypotheses[0].text

    @property
    def score(self) -> float:
        return self.hypotheses[0].score

    @property
    def times(self) -> tuple[float, float]:
        """Start and end in seconds."""
        return self.first / FRAME_RATE, self.end / FRAME_RATE


@dataclasses.dataclass(frozen=True)
class Transcript:
    """What is said in a recording."""

    segments: tuple[Segment, ...]  # without windows in which there is nothing to hear
    modality: str  # that was used: av, audio or video
    num_frames: int  # T
    mouth: MouthTrack | None  # None where no video was used
    samples: np.ndarray | None  # int16[n] as the model heard it; None where no audio was used
    recording: Recording | None  # None for arrays

    @property
    def text(self) -> str:
        """All of it."""
        return " ".join(segment.text for segment in self.segments if segment.text)


@dataclasses.dataclass(frozen=True)
class Clip:
    """A recording as arrays."""

    video: np.ndarray | None = None  # uint8[T, 96, 96], grey mouth crops, 25 a second
    audio: np.ndarray | None = None  # int16[n], 16 kHz mono


class Transcriber:
    """A model and all it takes to use it on recordings.

    transcriber = Transcriber.from_pretrained("runs/final")
    print(transcriber("clip.mp4").text)
    """

    def __init__(self, recognizer: Recognizer, batch_size: int = 8, mean_face: np.ndarray | None = None):
        """Args:
        recognizer: the model.
        batch_size: the most windows that are decoded at a time.
        mean_face: floating [68, 2], see viavsp_jax.prepare.recordings.mouth.
        """
        self.recognizer, self.batch_size, self.mean_face = recognizer, batch_size, mean_face

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike,
        *,
        step: str = "best",
        llm: str | None = None,
        encoder: str | None = None,
        kmeans: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        batch_size: int = 8,
        mean_face: np.ndarray | None = None,
    ) -> "Transcriber":
        """Loads the work folder of a training (by JAX) or an export of convert.to_hf (by PyTorch).

        Args:
          folder: either of them.
          step: of a work folder: best, latest or a number.
          llm, encoder, kmeans: the language model, the encoder and the centres where they are not where they were in
            training. An export holds the last two.
          device: of an export: cpu, cuda or cuda:N; None: cuda if there is one.
          dtype: that the model computes in, float32 or bfloat16; None: that of the training.
          batch_size, mean_face: see the class.

        Raises InputError if the folder is neither, or a part of it is missing.
        """
        path = os.fspath(folder)
        check_utf_8(path)
        if dtype not in (None, *DTYPES):
            raise InputError(f"the dtype is {dtype!r}, expected {' or '.join(DTYPES)}")
        if (pathlib.Path(path) / "projector.safetensors").exists():
            # Imported here because a machine may have only one of PyTorch and JAX's accelerators.
            from viavsp_jax.app.recognizer_torch import TorchRecognizer

            if encoder or kmeans or step != "best":
                raise InputError(f"{path} is an export: it holds its encoder and centres, and one step")
            return cls(TorchRecognizer(path, llm, device, dtype), batch_size, mean_face)
        if "://" not in path and not (pathlib.Path(path) / "checkpoints").is_dir():
            raise InputError(
                f"{path} is no model: expected the work folder of a training, or an export of python -m convert.to_hf"
            )
        if device:
            raise InputError(
                f"{path} is a work folder: it takes the devices that JAX sees (JAX_PLATFORMS), no --device"
            )
        from viavsp_jax.app.recognizer_jax import JaxRecognizer

        return cls(JaxRecognizer(path, batch_size, step, llm, encoder, kmeans, dtype), batch_size, mean_face)

    def __call__(
        self,
        media: str | os.PathLike | Clip | Sequence[str | os.PathLike | Clip],
        *,
        modality: str | None = None,
        languages: tuple[str, str] = ("vi", "vi"),
        num_beams: int | None = None,
        noise_snr: float | None = None,
        max_seconds: float | None = None,
        progress: Progress | None = None,
    ) -> Transcript | list[Transcript]:
        """Transcribes one recording, or each of several.

        Args:
          media: a video or audio file of any length, arrays, or a list of such.
          modality: av, audio or video; None: what the recording has.
          languages: what is spoken and what is wanted.
          num_beams: of the search; None: that of the model's config.
          noise_snr: babble of the recording's own voice is added, so many dB below (above, if negative) it; None: none.
          max_seconds: longer files are refused; None: none are.
          progress: called now and then.

        Raises InputError if a recording cannot be read, is too long or silent, or has no face or no sound where they
        are wanted.
        """
        if isinstance(media, list | tuple):
            options = {"modality": modality, "languages": languages, "num_beams": num_beams, "noise_snr": noise_snr}
            return [self(one, max_seconds=max_seconds, progress=progress, **options) for one in media]
        if modality not in (None, *MODALITIES):
            raise InputError(f"the modality is {modality!r}, expected one of {', '.join(MODALITIES)}")
        if num_beams is not None and not 1 <= num_beams <= MAX_BEAMS:
            raise InputError(f"num_beams is {num_beams}, expected from 1 to {MAX_BEAMS}")
        if noise_snr is not None and not abs(noise_snr) <= MAX_SNR:
            raise InputError(f"noise_snr is {noise_snr}, expected from {-MAX_SNR:g} to {MAX_SNR:g} dB")
        instruction_text(*languages)  # raises for one that has no name
        progress = progress or (lambda what, share: None)
        whole, shown, mouth, recording = self._read(media, modality, max_seconds, progress)
        name = recording.path if recording else "the arrays"
        if whole.samples is not None and noise_snr is not None:
            whole = dataclasses.replace(whole, samples=_with_babble(whole.samples, noise_snr, str(name)))
        segments = self._segments(whole, shown, languages, num_beams or self.recognizer.num_beams, progress)
        if not segments:
            raise InputError(f"{name}: there is nothing to hear in it; read lips alone with the modality video")
        return Transcript(segments, whole.modality, whole.num_frames, mouth, whole.samples, recording)

    def _read(
        self, media: str | os.PathLike | Clip, modality: str | None, max_seconds: float | None, progress: Progress
    ) -> tuple[Utterance, np.ndarray, MouthTrack | None, Recording | None]:
        """All of it as one utterance, and where a mouth is shown: bool[T]."""
        if isinstance(media, Clip):
            recording, name = None, "the arrays"
            samples, has_video = media.audio, media.video is not None
            if samples is not None and (samples.dtype != np.int16 or samples.ndim != 1):
                raise InputError(f"the audio is {samples.dtype}{list(samples.shape)}, expected 16 kHz mono, int16[n]")
        else:
            recording, name = read_recording(media, max_seconds), media
            samples, has_video = recording.samples, recording.size is not None
        if modality is None:
            modality = "video" if samples is None else "av" if has_video else "audio"
        for wanted, there, what in (("audio", samples is not None, "sound"), ("video", has_video, "pictures")):
            if modality in ("av", wanted) and not there:
                raise InputError(f"{name}: has no {what}, which the modality {modality} needs")
        if modality == "audio":
            mouth = None
        elif recording is None:
            mouth = _checked(media.video)
        else:
            progress(_FINDING, 0.0)
            mouth = mouth_crops(recording, self.mean_face, functools.partial(progress, _FINDING))
        samples = None if modality == "video" else samples
        heard = 0 if samples is None else -(-len(samples) // SAMPLES_PER_FRAME)
        if mouth is None:
            num_frames, crops, shown = heard, None, np.zeros(heard, bool)
        else:
            num_frames, crops, shown = len(mouth.crops), mouth.crops, mouth.shown
            if num_frames and heard - num_frames > _LOOSE_END:
                more = heard - num_frames
                crops = np.concatenate([crops, np.repeat(crops[-1:], more, 0)])
                num_frames, shown = heard, np.pad(shown, (0, more))
        if not num_frames:
            raise InputError(f"{name}: is empty, expected at least one frame")
        return Utterance(crops, samples, num_frames), shown, mouth, recording

    def _segments(
        self, whole: Utterance, shown: np.ndarray, languages: tuple[str, str], num_beams: int, progress: Progress
    ) -> tuple[Segment, ...]:
        if whole.samples is None:
            activity = windows.motion(whole.frames)
        else:
            activity = loudness(whole.samples, whole.num_frames)
        pieces = [
            (start, piece)
            for start, end in windows.cut(activity, self.recognizer.longest)
            if (piece := _piece(whole, shown, start, end)).samples is None or not windows.is_silent(piece.samples)
        ]
        found: dict[int, Segment] = {}
        # Windows of one modality and like length share a batch.
        pieces.sort(key=lambda one: (one[1].modality, -one[1].num_frames))
        for batch in self._batches(pieces):
            progress(_READING, len(found) / len(pieces))
            recognized = self.recognizer([piece for _, piece in batch], languages, num_beams)
            for (start, piece), one in zip(batch, recognized, strict=True):
                found[start] = Segment(start, start + piece.num_frames, one.hypotheses, one.run_lengths)
        progress(_READING, 1.0)
        return tuple(found[start] for start in sorted(found))

    def _batches(self, pieces: list[tuple[int, Utterance]]) -> Iterator[list[tuple[int, Utterance]]]:
        """Pieces that are sorted by modality, at most `batch_size` of one at a time."""
        for _, alike in itertools.groupby(pieces, key=lambda one: one[1].modality):
            alike = list(alike)
            yield from (alike[first : first + self.batch_size] for first in range(0, len(alike), self.batch_size))


def _piece(whole: Utterance, shown: np.ndarray, start: int, end: int) -> Utterance:
    """A window; where sound is heard, but no mouth shown in most of it, by sound alone."""
    blind = whole.samples is not None and shown[start:end].mean() < _LEAST_SHOWN
    frames = None if whole.frames is None or blind else whole.frames[start:end]
    samples = None if whole.samples is None else windows.samples_of(whole.samples, start, end)
    return Utterance(frames, samples, end - start)


def _checked(crops: np.ndarray) -> MouthTrack:
    """Crops that somebody made already."""
    if crops.ndim != 3 or crops.shape[1:] != (FRAME_SIZE, FRAME_SIZE) or crops.dtype != np.uint8:
        raise InputError(f"the video is {crops.dtype}{list(crops.shape)}, expected grey mouth crops, uint8[T, 96, 96]")
    return given_crops(crops)


def _with_babble(samples: np.ndarray, snr_db: float, name: str) -> np.ndarray:
    """Several voices at once, made of the recording's own, are added: int16[n] → int16[n]."""
    if windows.is_silent(samples):
        raise InputError(f"{name}: there is nothing to hear in it, so no noise can be measured against it")
    rng = noise.rng_for("transcribe", 0)
    return noise.mix(samples, noise.babble([samples] * noise.NUM_TALKERS, len(samples), rng), snr_db)
