"""What a model's own chat template puts around what a user says."""

import itertools

import transformers

from viavsp_jax.data.prompt_ids import SPEECH, Wording
from viavsp_jax.runtime.errors import InputError

# Some templates tell the date, by transformers' strftime_now. A prompt is to be the same every day, so they are given
# another one, which knows one day alone: that of Llama 3.1, whose template names it where it is told none.
_DAY = {
    "%d": "26", "%m": "07", "%b": "Jul", "%B": "July", "%Y": "2024", "%y": "24", "%a": "Fri", "%A": "Friday",
    "%H": "00", "%M": "00", "%S": "00",
}  # fmt: skip
_REPLACED = "".join(f" | replace('{code}', '{word}')" for code, word in _DAY.items())
# The line break after it, which jinja drops, leaves the template at the start of a line.
_STRFTIME_NOW = f"{{% macro strftime_now(format) %}}{{{{ format{_REPLACED} }}}}{{% endmacro %}}\n"


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
                chat_template=_STRFTIME_NOW + tokenizer.get_chat_template(),
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
