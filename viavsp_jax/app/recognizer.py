"""What a model must do to be transcribed with.

Letters: T video frames (25 a second), n audio samples (16,000 a second), U runs of frames.
"""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from etils import epath

from viavsp_jax.data.features import FRAME_RATE
from viavsp_jax.data.prompt import one_line
from viavsp_jax.data.units import Units
from viavsp_jax.decoding.nbest import Confidence, NBest, heard_words


@dataclasses.dataclass(frozen=True)
class Utterance:
    """A piece of a recording, short enough for the model."""

    frames: np.ndarray | None  # uint8[T, 96, 96], grey mouth crops
    samples: np.ndarray | None  # int16[n]
    num_frames: int  # T
    seen: np.ndarray | None = None  # bool[T], False where the frames show no mouth; None: all of them do

    @property
    def modality(self) -> str:
        """av, audio or video."""
        if self.samples is None:
            return "video"
        return "audio" if self.frames is None else "av"


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """What may have been said."""

    text: str  # one line, whatever was given
    # Log-probability / length ** length_penalty of the search; where a CTC head ranks several, with its own added.
    score: float

    def __post_init__(self):
        object.__setattr__(self, "text", one_line(self.text))


@dataclasses.dataclass(frozen=True)
class Word:
    """One of the best hypothesis, and when it is said."""

    text: str
    start: float  # seconds from the start of the utterance
    end: float
    confidence: float | None = None  # from 0 to 1: how likely it is right; None where the model cannot tell


@dataclasses.dataclass(frozen=True)
class Recognition:
    """What a model made of an utterance."""

    hypotheses: tuple[Hypothesis, ...]  # best first
    run_lengths: np.ndarray  # int32[U], of frames that were averaged; they sum to T
    # Those of the best hypothesis, in its order and that of time; None: the model has no CTC head.
    words: tuple[Word, ...] | None = None

    def __post_init__(self):
        if self.words is not None and [word.text for word in self.words] != self.hypotheses[0].text.split():
            raise ValueError(f"the words {self.words} are not those of {self.hypotheses[0].text!r}")


def timed_words(nbest: NBest, log_probs: np.ndarray, units: Units, confidence: Confidence | None) -> tuple[Word, ...]:
    """The words of the best of some texts, by the log-probabilities floating[T, V] that a CTC head has for them.

    Without `confidence`, it is not known how likely they are right.
    """
    alignment, evidence = heard_words(nbest, log_probs, units)
    told = confidence(evidence).tolist() if confidence else [None] * len(evidence)
    spans = (alignment.spans / FRAME_RATE).tolist()
    return tuple(Word(word, *span, one) for word, span, one in zip(nbest.texts[0].split(), spans, told, strict=True))


class Recognizer(Protocol):
    """A model, ready to decode. The last two attributes may be missing, and then are False."""

    longest: int  # frames of an utterance that it can be trusted with
    num_beams: int  # of its own search
    tokenizer: epath.Path  # the file, which need not be there
    trained_on: tuple[str, ...]  # the names of the shard folders
    knows_lost_video: bool  # whether it was trained on clips of which a part is not seen
    knows_words: bool  # whether it tells when each word is said

    def __call__(
        self, utterances: Sequence[Utterance], languages: tuple[str, str], num_beams: int
    ) -> list[Recognition]:
        """Decodes utterances of one modality, at most a batch of them; `languages` are spoken and wanted."""
