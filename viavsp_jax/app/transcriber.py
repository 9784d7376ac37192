"""Files or arrays in, text with times out, by a training checkpoint or an export.

Letters: T video frames (25 a second), n audio samples (16,000 a second), U runs of frames.
"""

import collections
import dataclasses
import functools
import itertools
import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from viavsp_jax.app.inputs import Clip, Progress, Source, read_source
from viavsp_jax.app.recognizer import Hypothesis, Recognition, Recognizer, Utterance, Word
from viavsp_jax.app.windows import Window, plan, samples_of
from viavsp_jax.data.examples import MODALITIES
from viavsp_jax.data.features import FRAME_RATE
from viavsp_jax.data.prompt import instruction_text
from viavsp_jax.prepare.recordings.mouth import MouthTrack
from viavsp_jax.prepare.recordings.recording import Recording
from viavsp_jax.prepare.recordings.voice import THRESHOLD
from viavsp_jax.rules import DTYPES, MAX_BEAMS
from viavsp_jax.runtime.atomic import check_utf_8
from viavsp_jax.runtime.errors import InputError

MAX_SNR = 100.0  # dB of noise, above or below: more is all of the one or of the other

_LISTENING, _READING = "finding speech", "reading lips and speech"


@dataclasses.dataclass(frozen=True)
class Segment:
    """What is said in one window."""

    first: int  # frame that the model got, 25 a second
    end: int  # the frame after its last
    hypotheses: tuple[Hypothesis, ...]  # best first
    run_lengths: np.ndarray  # int32[U], of frames that were averaged; they sum to end - first
    modality: str = "av"  # that was used: av, audio or video
    own: tuple[int, int] | None = None  # the frames that are not those of another, see windows.Window.cut; None: all
    own_text: str | None = None  # of them, where the best hypothesis begins with a word of the segment before
    words: tuple[Word, ...] | None = None  # those of `text`, in seconds of the recording; None: the model tells none

    @property
    def text(self) -> str:
        return self.hypotheses[0].text if self.own_text is None else self.own_text

    @property
    def score(self) -> float:
        return self.hypotheses[0].score

    @property
    def times(self) -> tuple[float, float]:
        """Start and end in seconds. No two segments overlap."""
        start, end = self.own or (self.first, self.end)
        return start / FRAME_RATE, end / FRAME_RATE


@dataclasses.dataclass(frozen=True)
class Transcript:
    """What is said in a recording."""

    segments: tuple[Segment, ...]  # where somebody speaks
    modality: str  # what there was to use: av, audio or video; each segment has its own
    num_frames: int  # T
    mouth: MouthTrack | None  # None where no video was used
    samples: np.ndarray | None  # int16[n] as the model heard it; None where no audio was used
    recording: Recording | None  # None for arrays
    note: str | None = None  # why something that the recording has was not used, a sentence

    @property
    def text(self) -> str:
        """All of it."""
        return " ".join(segment.text for segment in self.segments if segment.text)

    @property
    def words(self) -> tuple[Word, ...] | None:
        """All of them, in seconds of the recording; None: the model does not tell when they are said."""
        spoken = [segment.words for segment in self.segments if segment.text]
        return None if None in spoken else tuple(word for words in spoken for word in words)

    @property
    def seconds(self) -> dict[str, float]:
        """How long somebody speaks, by the modality that was used."""
        found = collections.Counter()
        for segment in self.segments:
            start, end = segment.times
            found[segment.modality] += end - start
        return {modality: found[modality] for modality in MODALITIES if found[modality]}


class Transcriber:
    """A model and all it takes to use it on recordings.

    transcriber = Transcriber.from_pretrained("runs/final")
    print(transcriber("clip.mp4").text)
    """

    def __init__(
        self,
        recognizer: Recognizer,
        batch_size: int = 8,
        mean_face: np.ndarray | None = None,
        vad_threshold: float | None = None,
    ):
        """Args:
        recognizer: the model.
        batch_size: the most windows that are decoded at a time.
        mean_face: floating [68, 2], see viavsp_jax.prepare.recordings.mouth.
        vad_threshold: probability of speech from which on sound is transcribed; None: all of it is.
        """
        self.recognizer, self.batch_size, self.mean_face = recognizer, batch_size, mean_face
        self.vad_threshold = vad_threshold

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
        server: str | None = None,
        compression: str | None = None,
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
          server: of an export: the address of a vLLM server that decodes, see recognizer_vllm; None: it decodes here.
          compression: how frames become positions, as in config.data.compression; None: as the training's config, or
            the export, says.
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
            if server:
                from viavsp_jax.app.recognizer_vllm import VLLMRecognizer

                if llm:
                    raise InputError(f"--server {server} has a language model, expected no --llm with it")
                by_server = VLLMRecognizer(path, server, device, dtype, compression)
                return cls(by_server, batch_size, mean_face, THRESHOLD)
            return cls(TorchRecognizer(path, llm, device, dtype, compression), batch_size, mean_face, THRESHOLD)
        if "://" not in path and not (pathlib.Path(path) / "checkpoints").is_dir():
            raise InputError(
                f"{path} is no model: expected the work folder of a training, or an export of python -m convert.to_hf"
            )
        if server:
            raise InputError(f"{path} is a work folder: --server takes an export of python -m convert.to_hf")
        if device:
            raise InputError(
                f"{path} is a work folder: it takes the devices that JAX sees (JAX_PLATFORMS), no --device"
            )
        from viavsp_jax.app.recognizer_jax import JaxRecognizer

        by_jax = JaxRecognizer(path, batch_size, step, llm, encoder, kmeans, dtype, compression)
        return cls(by_jax, batch_size, mean_face, THRESHOLD)

    def __call__(
        self,
        media: str | os.PathLike | Clip | Sequence[str | os.PathLike | Clip],
        *,
        modality: str | None = None,
        languages: tuple[str, str] = ("vi", "vi"),
        num_beams: int | None = None,
        vad_threshold: float | None = None,
        vad: bool = True,
        noise_snr: float | None = None,
        max_seconds: float | None = None,
        audio_track: int | None = None,
        progress: Progress | None = None,
    ) -> Transcript | list[Transcript]:
        """Transcribes one recording, or each of several.

        Args:
          media: a video or audio file of any length, arrays, or a list of such.
          modality: av, audio or video, for all of it; None: where somebody speaks, what can be heard and seen there.
          languages: what is spoken and what is wanted.
          num_beams: of the search; None: that of the model's config.
          vad_threshold: probability of speech from which on sound is transcribed; None: that of the transcriber, which
            is 0.5 where it is loaded by from_pretrained.
          vad: False: all of the recording is transcribed, pauses too.
          noise_snr: babble of the recording's own voice is added, so many dB below (above, if negative) it; None: none.
            Speech is found without it.
          max_seconds: longer files are refused; None: none are.
          audio_track: of files with several, counted from 1; None: the first that can be heard.
          progress: called now and then.

        Where nobody speaks, there are no segments.

        Raises InputError if a recording cannot be read, is too long, or has no face or no sound where it is wanted.
        """
        if isinstance(media, list | tuple):
            options = {
                "modality": modality, "languages": languages, "num_beams": num_beams, "vad": vad,
                "vad_threshold": vad_threshold, "noise_snr": noise_snr, "max_seconds": max_seconds,
                "audio_track": audio_track, "progress": progress,
            }  # fmt: skip
            return [self(one, **options) for one in media]
        if modality not in (None, *MODALITIES):
            raise InputError(f"the modality is {modality!r}, expected one of {', '.join(MODALITIES)}")
        if num_beams is not None and not 1 <= num_beams <= MAX_BEAMS:
            raise InputError(f"num_beams is {num_beams}, expected from 1 to {MAX_BEAMS}")
        if vad_threshold is not None and not 0 < vad_threshold < 1:
            raise InputError(f"vad_threshold is {vad_threshold}, expected a number between 0 and 1")
        if noise_snr is not None and not abs(noise_snr) <= MAX_SNR:
            raise InputError(f"noise_snr is {noise_snr}, expected from {-MAX_SNR:g} to {MAX_SNR:g} dB")
        instruction_text(*languages)  # raises for one that has no name
        progress = progress or (lambda what, share: None)
        source = read_source(media, modality, self.mean_face, max_seconds, audio_track, progress)
        listening = functools.partial(progress, _LISTENING)
        threshold = (vad_threshold or self.vad_threshold) if vad else None
        lost = getattr(self.recognizer, "knows_lost_video", False)
        windows = plan(source, modality, threshold, self.recognizer.longest, listening, lost)
        if noise_snr is not None:
            source = source.with_babble(noise_snr)
        segments = self._segments(source, windows, languages, num_beams or self.recognizer.num_beams, progress)
        return Transcript(
            segments, source.modality, source.num_frames, source.mouth, source.samples, source.recording, source.note
        )

    def _segments(
        self, source: Source, windows: list[Window], languages: tuple[str, str], num_beams: int, progress: Progress
    ) -> tuple[Segment, ...]:
        lost = getattr(self.recognizer, "knows_lost_video", False)
        # Windows of one modality and like length share a batch.
        order = sorted(windows, key=lambda window: (window.modality, window.first - window.end))
        found: dict[Window, Recognition] = {}
        for batch in self._batches(order):
            progress(_READING, len(found) / len(windows))
            utterances = [_utterance(source, window, lost) for window in batch]
            found |= zip(batch, self.recognizer(utterances, languages, num_beams), strict=True)
        progress(_READING, 1.0)
        segments: list[Segment] = []
        for window in windows:
            one = found[window]
            text = one.hypotheses[0].text
            if segments and window.goes_on:
                text = _without_repeated(text, segments[-1].text)
            words = None if one.words is None else _placed(one.words[len(one.words) - len(text.split()) :], window)
            place = window.first, window.end
            segments.append(Segment(*place, one.hypotheses, one.run_lengths, window.modality, window.cut, text, words))
        return tuple(segments)

    def _batches(self, windows: list[Window]) -> Iterator[list[Window]]:
        """Windows that are sorted by modality, at most `batch_size` of one at a time."""
        for _, alike in itertools.groupby(windows, key=lambda window: window.modality):
            alike = list(alike)
            yield from (alike[first : first + self.batch_size] for first in range(0, len(alike), self.batch_size))


def _utterance(source: Source, window: Window, knows_lost_video: bool) -> Utterance:
    """What the model gets of a window; what shows no mouth is hidden from one that knows that, others see it."""
    seen = source.seen[window.first : window.end] if knows_lost_video and window.modality != "audio" else None
    frames = None if window.modality == "audio" else source.frames[window.first : window.end]
    samples = None if window.modality == "video" else samples_of(source.samples, window.first, window.end)
    return Utterance(frames, samples, window.end - window.first, seen)


def _without_repeated(text: str, before: str) -> str:
    """A text without its first word, if the one before ends with it: what both hear has room for one word."""
    words, last = text.split(), before.split()[-1:]
    return " ".join(words[1:] if words[:1] == last else words)


def _placed(words: Sequence[Word], window: Window) -> tuple[Word, ...]:
    """Words of a window in seconds of the recording, inside the frames that are its own, one after the other.

    Each lasts a frame at least, if there are as many: what is heard beyond a cut ends up at it, and must be shown, too.
    """
    first, end = (frame / FRAME_RATE for frame in window.cut)
    least = min(1 / FRAME_RATE, (end - first) / max(1, len(words)))
    placed, free = [], first  # from when on no word is
    for number, word in enumerate(words):
        latest = end - (len(words) - number - 1) * least  # that it may end
        start = min(max(free, window.first / FRAME_RATE + word.start), latest - least)
        free = min(max(start + least, window.first / FRAME_RATE + word.end), latest)
        placed.append(dataclasses.replace(word, start=start, end=free))
    return tuple(placed)
