"""The instruction before the speech and the label after it, as token ids."""

import hashlib
import json
import os
import tempfile

from etils import epath
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from viavsp_jax.errors import InputError

# The reference's languages, named in Vietnamese as its instruction names them.
LANGUAGES = {
    "en": "tiếng Anh",
    "es": "tiếng Tây Ban Nha",
    "fr": "tiếng Pháp",
    "it": "tiếng Ý",
    "pt": "tiếng Bồ Đào Nha",
    "vi": "tiếng Việt",
}
RECOGNITION = "Hãy nhận diện câu tiếng Việt này. Đầu vào: "
TRANSLATION = "Translate this {source} speech to {target}. Input: "


def instruction_text(source: str, target: str) -> str:
    """What the model is asked, with its trailing space; InputError for a language the reference has no name for."""
    for language in (source, target):
        if language not in LANGUAGES:
            raise InputError(f"language {language!r} is unknown: expected one of {', '.join(LANGUAGES)}")
    if source == target == "vi":
        return RECOGNITION
    return TRANSLATION.format(source=LANGUAGES[source], target=LANGUAGES[target])


class Prompt:
    """Token ids of instructions and labels, and text of generated ids, for one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end_token: str):
        """`end_token` closes every label (the reference: `</s>`, also for models whose own EOS differs)."""
        self.tokenizer = tokenizer
        self.begin_id = tokenizer.bos_token_id
        self.end_id = tokenizer.get_vocab().get(end_token)
        if self.begin_id is None or self.end_id is None:
            raise InputError(
                f"the tokenizer in {tokenizer.name_or_path} has no begin token, or no token {end_token!r} "
                "(config.llm.end_token)"
            )
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.end_id
        self._instructions: dict[str, tuple[int, ...]] = {}  # by text: there are few for many clips

    def check_fits(self, vocab_size: int) -> None:
        """Raises InputError if the model has no embedding for a token: the tokenizer is that of another model."""
        largest = max(self.begin_id, self.end_id, self.tokenizer.vocab_size - 1)
        if largest >= vocab_size:
            raise InputError(
                f"the tokenizer in {self.tokenizer.name_or_path} has token ids up to {largest}, expected less than "
                f"{vocab_size}, the vocab_size in config.json"
            )

    def sha256(self) -> str:
        """Another one whenever a token has another id, or any language another instruction."""
        vocabulary = sorted(self.tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
        instructions = [self.instruction(source, target) for source in LANGUAGES for target in LANGUAGES]
        return hashlib.sha256(json.dumps([vocabulary, instructions]).encode()).hexdigest()

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def instruction(self, source: str, target: str) -> list[int]:
        """Begin token and instruction."""
        text = instruction_text(source, target)
        if text not in self._instructions:
            self._instructions[text] = (self.begin_id, *self._ids(text))
        return list(self._instructions[text])

    def label(self, text: str) -> list[int]:
        """Begin token, text, end token: what the model learns to write after the speech."""
        return [self.begin_id, *self._ids(text), self.end_id]

    def label_lengths(self, texts: list[str]) -> list[int]:
        """The lengths of the labels of many texts, faster than one by one."""
        return [len(ids) + 2 for ids in self.tokenizer(texts, add_special_tokens=False)["input_ids"]]

    def text(self, ids: list[int]) -> str:
        """Text of generated ids, up to the end token."""
        ids = list(ids)
        if self.end_id in ids:
            ids = ids[: ids.index(self.end_id)]
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()


def load_prompt(folder: epath.PathLike, end_token: str) -> Prompt:
    """Reads the tokenizer of a language-model folder, which may lie in a bucket; InputError when there is none."""
    folder = epath.Path(folder)
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model")):
        raise InputError(f"{folder} holds no tokenizer.json or tokenizer.model")
    try:
        # Code that comes with a tokenizer is not run, nor is it asked for on the terminal.
        tokenizer = AutoTokenizer.from_pretrained(_local(folder), trust_remote_code=False)
    except Exception as error:  # what tokenizers raise for a damaged file is no kind of it
        raise InputError(f"the tokenizer in {folder} cannot be read: {' '.join(str(error).split())[:300]}") from error
    return Prompt(tokenizer, end_token)


def _local(folder: epath.Path) -> str:
    """Transformers reads local files only: small files of a bucket are copied to a temporary folder."""
    if "://" not in str(folder):
        return os.fspath(folder)
    target = epath.Path(tempfile.mkdtemp(prefix="viavsp_tokenizer_"))
    for file in folder.iterdir():
        if file.suffix in (".json", ".model") and not file.is_dir():
            file.copy(target / file.name)
    return os.fspath(target)
