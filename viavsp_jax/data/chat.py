"""What a model's own chat template puts around what a user says."""

import datetime
import itertools

import transformers

from viavsp_jax.data.prompt_ids import SPEECH, Wording
from viavsp_jax.runtime.errors import InputError

# What templates that tell the date are told: a prompt is the same every day. Llama 3.1 has it where none is known.
_DAY = datetime.date(2024, 7, 26)


def chat_parts(tokenizer: "transformers.PreTrainedTokenizerBase", wording: Wording) -> tuple[str, str]:
    """What the tokenizer's chat template puts before and after what a user says, with the start of the answer.

    Raises InputError if it has no template, or one that changes what a user says.
    """
    if not tokenizer.chat_template:
        raise InputError(
            f"the tokenizer in {tokenizer.name_or_path} has no chat template, which config.prompt.chat=True asks for: "
            "set that to False, or take a model that was tuned to chats"
        )
    pairs = itertools.product(wording.languages, repeat=2)
    what, found = f"the chat template of the tokenizer in {tokenizer.name_or_path}", set()
    for content in sorted({wording.instruction(a, b) + SPEECH for a, b in pairs}):
        try:
            text = tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True,
                strftime_now=_DAY.strftime,
            )  # fmt: skip
        except Exception as error:  # a template is a program and raises what it likes
            raise InputError(f"{what} cannot be used: {' '.join(str(error).split())[:300]}") from error
        if text.count(content) != 1 or text.count(SPEECH) != 1:
            raise InputError(
                f"{what} does not repeat what a user says word for word, expected the instruction in it as it is: set "
                "config.prompt.chat=False, or another config.prompt.instruction"
            )
        found.add(tuple(text.split(content)))
    if len(found) > 1:
        raise InputError(f"{what} puts other words around other instructions: set config.prompt.chat=False")
    return found.pop()
