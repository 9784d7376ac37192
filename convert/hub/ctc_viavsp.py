"""The CTC head: what the encoder alone makes of each frame, in units of words.

Part of every export, see modeling_viavsp.py.

Letters: T frames, E encoder width, H hidden width, V units with the blank, which is the first.
"""

import torch
from torch import Tensor, nn

FILE, UNITS = "ctc.safetensors", "ctc_units.json"


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
