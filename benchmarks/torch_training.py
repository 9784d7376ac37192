"""The update in PyTorch, twice: as the reference makes it, and as batches of padded clips.

Letters: B clips, T frames, U segments, S positions, E encoder width, D LLM width, V vocabulary.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from benchmarks.random_model import TorchModel
from convert.hub.modeling_viavsp import segment_means
from viavsp_jax.data.examples import Example
from viavsp_jax.data.prompt import Prompt

IGNORED = -100  # no target, in transformers' losses
OTHER = -1  # in `tokens`: a segment goes there


@dataclasses.dataclass(frozen=True)
class Clip:
    """A clip as a loader would hand it over: tensors on the device, run lengths as numbers too."""

    features: torch.Tensor  # [T, E]
    counts: list[int]
    run_lengths: torch.Tensor  # int[U], the same
    instruction: torch.Tensor  # int[I]
    label: torch.Tensor  # int[L]


def to_clip(record: Example, prompt: Prompt, device: torch.device) -> Clip:
    """A record of the shards as PyTorch reads it."""
    counts = record["cluster_counts"].tolist()
    return Clip(
        torch.tensor(record["features"], device=device).float(),
        counts,
        torch.tensor(counts, device=device),
        torch.tensor(prompt.instruction(record["source_language"], record["target_language"]), device=device),
        torch.tensor(prompt.label(record["transcript"]), device=device),
    )


def autocast(model: TorchModel) -> contextlib.AbstractContextManager:
    """Products in the dtype of the frozen weights, with learnt ones in float32."""
    dtype = model.llm.get_input_embeddings().weight.dtype
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(model.device.type, dtype)


def clip_loss(model: TorchModel, clips: Sequence[Clip]) -> torch.Tensor:
    """The reference's loss, of one clip: all frames projected, a loop over runs, logits at every position."""
    (clip,) = clips
    frames = model.projector(clip.features)
    segments, start = [], 0
    for count in clip.counts:
        segments.append(frames[start : start + count].mean(0))
        start += count
    embed = model.llm.get_input_embeddings()
    x = torch.cat([embed(clip.instruction), torch.stack(segments), embed(clip.label)])
    logits = model.llm(inputs_embeds=x[None]).logits[0]
    return cross_entropy(logits[-len(clip.label) - 1 : -1].float(), clip.label)


def padded(model: TorchModel, clips: Sequence[Clip]) -> tuple[torch.Tensor, torch.Tensor]:
    """`[instruction][speech][label]` of each clip, padded on the right: x [B, S, D] and labels int[B, S].

    Nothing comes after the padding, so that causal attention needs no mask.
    """
    rows, labels = [], []
    for clip in clips:
        speech = clip.instruction.new_full((len(clip.counts),), OTHER)
        rows.append(torch.cat([clip.instruction, speech, clip.label]))
        before = clip.instruction.new_full((len(clip.instruction) + len(clip.counts),), IGNORED)
        labels.append(torch.cat([before, clip.label]))
    tokens = pad_sequence(rows, batch_first=True)
    means = segment_means(torch.cat([clip.features for clip in clips]), torch.cat([clip.run_lengths for clip in clips]))
    text = model.llm.get_input_embeddings()(tokens.clamp(min=0))
    x = text.masked_scatter((tokens == OTHER)[..., None], model.projector(means).to(text.dtype))
    return x, pad_sequence(labels, batch_first=True, padding_value=IGNORED)


def batch_loss(model: TorchModel, clips: Sequence[Clip]) -> torch.Tensor:
    """Labels in, loss out, as transformers' documentation has it; mean over the label tokens of the batch."""
    x, labels = padded(model, clips)
    return model.llm(inputs_embeds=x, labels=labels, use_cache=False).loss


def label_only_batch_loss(model: TorchModel, clips: Sequence[Clip]) -> torch.Tensor:
    """The same with logits at the label positions only: the model without its head, then the head on these."""
    x, labels = padded(model, clips)
    shifted = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
    wanted = shifted != IGNORED
    llm = model.llm.get_base_model()  # with its adapters, which stand in its layers
    hidden = llm.model(inputs_embeds=x, use_cache=False).last_hidden_state
    return cross_entropy(llm.lm_head(hidden[wanted]).float(), shifted[wanted])


class Training:
    """Updates in turn over the same clips, `accumulate` backward passes of `batch` clips each.

    Called, it makes one update, waits for it and returns the number of clips.
    """

    def __init__(
        self,
        model: TorchModel,
        optimizer: torch.optim.Optimizer,
        loss: Callable[[TorchModel, Sequence[Clip]], torch.Tensor],
        clips: Sequence[Clip],
        batch: int,
        accumulate: int = 1,
    ):
        self.model, self.optimizer, self.loss = model, optimizer, loss
        self.clips, self.batch, self.accumulate = clips, batch, accumulate
        self.position = 0

    def next_clips(self) -> list[Clip]:
        """The next batch, from the start again after the end."""
        chosen = [self.clips[(self.position + i) % len(self.clips)] for i in range(self.batch)]
        self.position += self.batch
        return chosen

    def __call__(self) -> int:
        for _ in range(self.accumulate):
            with autocast(self.model):
                loss = self.loss(self.model, self.next_clips())
            (loss / self.accumulate).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.model.device.type == "cuda":
            torch.cuda.synchronize()
        return self.accumulate * self.batch
