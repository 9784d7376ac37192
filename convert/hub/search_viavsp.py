"""The search for texts by transformers' `generate`, and their scores.

Part of every export, see modeling_viavsp.py. Letters: B clips, H texts, S positions, G generated tokens, D LLM width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, RepetitionPenaltyLogitsProcessor


def generation_config(
    decoding: dict[str, Any], search: dict[str, Any], begin_id: int | None, end_ids: Sequence[int]
) -> GenerationConfig:
    """The search `decoding` of the training, changed by `search`; all but the repetition penalty, see `generate`.

    Raises TypeError for what is no setting of a search.
    """
    if unknown := sorted(search.keys() - {"seed", *vars(GenerationConfig())}):
        raise TypeError(f"the search has no setting {', '.join(unknown)}")
    settings = decoding | search
    left_out = {"seed", "repetition_penalty"}
    if settings.get("num_beams", 1) == 1:  # settings that would not count are warned of
        left_out |= {"early_stopping", "length_penalty"}
    if not settings.get("do_sample", False):
        left_out |= {"top_k", "top_p"}
    # Texts are filled up with the first end token: a tokenizer's own padding may have no embedding in the model.
    return GenerationConfig(
        **{name: value for name, value in settings.items() if name not in left_out},
        bos_token_id=begin_id, eos_token_id=list(end_ids), pad_token_id=end_ids[0],
    )  # fmt: skip


def generate(llm: PreTrainedModel, x: Tensor, mask: Tensor, settings: GenerationConfig, penalty: float) -> Tensor:
    """Texts after prompts [B, S, D] with an attention mask int[B, S]: int64[B · H, G], those of a clip best first.

    Positions follow from the mask: the first token of each clip has position 0. The repetition penalty is given apart
    since generate's own would overlook as many generated tokens as a prompt has padding (transformers 5).
    """
    processors = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(penalty)])
    return llm.generate(inputs_embeds=x, attention_mask=mask, generation_config=settings, logits_processor=processors)


def scores(
    llm: PreTrainedModel, prompt: Tensor, ids: Tensor, settings: GenerationConfig, penalty: float
) -> tuple[Tensor, Tensor]:
    """Texts after a prompt as the search ranks them: [S, D] and int64[H, G] → float32[H] twice.

    These are log-probabilities, divided by a norm, and that norm: with several beams the length of each text to the
    power of the length penalty, else 1. By a forward pass: `generate` would keep the logits of all steps for it.
    """
    ends = torch.tensor(settings.eos_token_id, device=ids.device)
    is_end = torch.isin(ids, ends).long()
    counted = is_end.cumsum(1) - is_end == 0
    x = torch.cat([prompt.expand(len(ids), -1, -1), llm.get_input_embeddings()(ids[:, :-1])], 1)
    logits = llm(inputs_embeds=x, use_cache=False, logits_to_keep=ids.shape[1]).logits.float()
    beams = settings.num_beams > 1
    # Beam search changes log-probabilities, which then no longer sum to 1; greedy search and sampling change logits.
    values = logits.log_softmax(-1) if beams else logits
    if penalty != 1.0:
        repetition = RepetitionPenaltyLogitsProcessor(penalty)
        values = torch.stack([repetition(ids[:, :step], values[:, step]) for step in range(ids.shape[1])], 1)
    if not beams:
        values[:, : settings.min_new_tokens or 0, ends] = -torch.inf
        values = values.log_softmax(-1)
    norms = counted.sum(1).float() ** (settings.length_penalty if beams else 0.0)
    chosen = values.gather(-1, ids[..., None])[..., 0]
    return chosen.masked_fill(~counted, 0).sum(1) / norms, norms
