"""The CTC head: what the encoder alone makes of each frame, in units of words; and what that tells of hypotheses.

Part of every export, see modeling_viavsp.py.

Letters: T frames (25 a second), E encoder width, H hidden width, V units with the blank, which is the first,
M hypotheses.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PretrainedConfig

from .feature_extraction_viavsp import FRAME_RATE
from .language_model_viavsp import ExportError
from .nbest_viavsp import Confidence, NBest, heard_words, weight_of
from .units_viavsp import FILE as UNITS
from .units_viavsp import Units

FILE = "ctc.safetensors"


class CTCHead(nn.Module):
    """One hidden layer, which sees a frame and the ones before and behind it."""

    def __init__(self, inputs: int, width: int, units: int):
        super().__init__()
        self.hidden, self.output = nn.Linear(3 * inputs, width), nn.Linear(width, units)

    @torch.inference_mode()
    def log_probs(self, features: Tensor) -> Tensor:
        """[T, E] of one clip → float32[T, V]."""
        frames = features.to(self.hidden.weight.device, self.hidden.weight.dtype)
        wide = nn.functional.pad(frames, (0, 0, 1, 1))
        seen = torch.cat([wide[i : i + len(frames)] for i in range(3)], -1)
        hidden = nn.functional.gelu(self.hidden(seen), approximate="tanh")
        return self.output(hidden).float().log_softmax(-1)


@dataclasses.dataclass(frozen=True)
class Hearing:
    """What the head is used with."""

    units: Units
    weight: float  # of its log-probabilities among hypotheses
    confidence: Confidence | None  # of words; None: it was not calibrated

    def with_weight(self, weight: float | None) -> "Hearing":
        """The same with another weight, unless it is None. ExportError for what is none."""
        try:
            return self if weight is None else dataclasses.replace(self, weight=weight_of(weight))
        except (ValueError, TypeError) as error:
            raise ExportError(str(error)) from None

    def ranked(
        self, log_probs: Tensor, hypotheses: Sequence[dict[str, Any]], norms: Sequence[float]
    ) -> list[dict[str, Any]]:
        """Hypotheses {"text", "score", …} in order, with `words` added to the best of them.

        Args:
          log_probs: float32[T, V] of the head.
          hypotheses: M that the search found, best first.
          norms: M numbers, by which the log-probability of each was divided for its score.
        """
        heard = log_probs.cpu().numpy()
        texts, found = [one["text"] for one in hypotheses], [one["score"] for one in hypotheses]
        nbest, places = NBest.of(texts, found, norms), range(len(texts))
        if self.weight:
            nbest, places = nbest.rescored(nbest.likelihoods(heard, self.units), self.weight)
        alignment, evidence = heard_words(nbest, heard, self.units)
        told = self.confidence(evidence).tolist() if self.confidence else [None] * len(evidence)
        words = [
            {"text": text, "start": start, "end": end, "confidence": one}
            for text, (start, end), one in zip(
                nbest.texts[0].split(), (alignment.spans / FRAME_RATE).tolist(), told, strict=True
            )
        ]
        ordered = [hypotheses[i] | {"score": score} for i, score in zip(places, nbest.scores.tolist(), strict=True)]
        return [ordered[0] | {"words": words}, *ordered[1:]]


def load_ctc(
    config: PretrainedConfig, root: pathlib.Path, device: torch.device, dtype: torch.dtype
) -> tuple[CTCHead | None, Hearing | None]:
    """The head of an export and what it is used with; None where there is none. ExportError if it is damaged."""
    if not config.ctc:
        return None, None
    try:
        head = CTCHead(config.feature_width, config.ctc["width"], config.ctc["units"])
        head.load_state_dict(load_file(root / FILE))
        units = Units((root / UNITS).read_text(encoding="utf-8", errors="replace"), str(root / UNITS))
        hearing = Hearing(units, weight_of(config.ctc_weight), Confidence.of_json(config.confidence))
    except (ValueError, TypeError, AttributeError, KeyError, OverflowError, RuntimeError, SafetensorError) as error:
        raise ExportError(f"{root}: its CTC head cannot be used ({error})") from error
    return head.to(device, dtype).eval(), hearing
