"""The one definition of a prompt as token ids: [before][speech][after], then the label that the model writes.

Training and decoding go by it, and so do exports, which carry a copy of this file: it imports nothing of the project.

             without a chat              in a chat
    before   [begin token] instruction   what the template opens with, instruction
    after    nothing                     what the template closes with
    label    [begin token] text, end     text, end

The begin token is there if the tokenizer has one; chat templates write it themselves.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

# Stands for the speech while a prompt is still text: a character without a meaning, which no template trims.
SPEECH = "\ue000"


@dataclasses.dataclass(frozen=True)
class Wording:
    """What a prompt says, as text; {source} and {target} stand for names of languages."""

    recognition: str  # what the model is asked where Vietnamese is spoken and wanted
    translation: str  # what it is asked else
    languages: Mapping[str, str]  # their names, by code
    chat: tuple[str, str] | None = None  # what a chat template puts before and after the user's words; None: no chat

    def instruction(self, source: str, target: str) -> str:
        """What the model is asked. Raises ValueError for a language that has no name."""
        for language in (source, target):
            if language not in self.languages:
                raise ValueError(f"language {language!r} is unknown: expected one of {', '.join(self.languages)}")
        text = self.recognition if source == target == "vi" else self.translation
        return text.replace("{source}", self.languages[source]).replace("{target}", self.languages[target])


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """Tokens of a text, without those that the tokenizer would put around it."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def before_speech(tokenizer: Any, wording: Wording, source: str, target: str) -> list[int]:
    """What precedes the speech. Raises ValueError for a language that has no name."""
    instruction = wording.instruction(source, target)
    if wording.chat is not None:
        return text_ids(tokenizer, wording.chat[0] + instruction)
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return begin + text_ids(tokenizer, instruction)


def after_speech(tokenizer: Any, wording: Wording) -> list[int]:
    """What stands between the speech and the label; nothing without a chat."""
    if wording.chat is None:
        return []
    closing = wording.chat[1]
    # It continues what the user says: as a text of its own, SentencePiece would put a space before it.
    whole, speech = text_ids(tokenizer, SPEECH + closing), text_ids(tokenizer, SPEECH)
    return whole[len(speech) :] if whole[: len(speech)] == speech else text_ids(tokenizer, closing)


def label_start(tokenizer: Any, wording: Wording, end_id: int) -> list[int]:
    """What every label starts with: the begin token, or nothing."""
    begin = tokenizer.bos_token_id
    # Where one token begins and ends texts, a label that started with it would be over at once.
    return [] if wording.chat is not None or begin in (None, end_id) else [begin]


def until_end(ids: list[int], end_ids: tuple[int, ...]) -> list[int]:
    """Generated ids up to the first that ends a text, and without it."""
    return ids[: next((place for place, one in enumerate(ids) if one in end_ids), len(ids))]
