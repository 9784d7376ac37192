"""The instruction before the speech and the label after it, as token ids."""

import hashlib
import importlib.util
import json
import os
import re
import tempfile

import transformers  # its parts are imported when they are used: they import PyTorch, where it is installed
from etils import epath

from viavsp_jax.runtime.errors import InputError

# Files that a tokenizer is read from: the first of them that is there.
TOKENIZERS = ("tokenizer.json", "tokenizer.model")

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
# Of bytes and of line and paragraph separators; a vocabulary of bytes has them all.
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def instruction_text(source: str, target: str) -> str:
    """What the model is asked, with its trailing space; InputError for a language the reference has no name for."""
    for language in (source, target):
        if language not in LANGUAGES:
            raise InputError(f"language {language!r} is unknown: expected one of {', '.join(LANGUAGES)}")
    if source == target == "vi":
        return RECOGNITION
    return TRANSLATION.format(source=LANGUAGES[source], target=LANGUAGES[target])


def one_line(text: str) -> str:
    """A text as subtitles and tables can hold it: white space and control characters between words are one space."""
    return " ".join(_CONTROLS.sub(" ", text).split())


class Prompt:
    """Token ids of instructions and labels, and text of generated ids, for one tokenizer."""

    def __init__(self, tokenizer: "transformers.PreTrainedTokenizerBase", end_token: str):
        """`end_token` closes every label (the reference: `</s>`, also for models whose own EOS differs)."""
        self.tokenizer = tokenizer
        self.begin_id = begin_id(tokenizer)
        self.end_id = tokenizer.get_vocab().get(end_token)
        if self.end_id is None:
            own = f", such as its own {tokenizer.eos_token!r}" if tokenizer.eos_token else ""
            raise InputError(
                f"the tokenizer in {tokenizer.name_or_path} has no token {end_token!r} (config.llm.end_token): set "
                f"that to one it has{own}"
            )
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.end_id
        self._instructions: dict[str, tuple[int, ...]] = {}  # by text: there are few for many clips

    def check_fits(self, vocab_size: int) -> None:
        """Raises InputError if the model has no embedding for a token: the tokenizer is that of another model."""
        check_ids(self.tokenizer, vocab_size)

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
        """Text of generated ids, up to the end token, in one line."""
        ids = list(ids)
        if self.end_id in ids:
            ids = ids[: ids.index(self.end_id)]
        return one_line(self.tokenizer.decode(ids, skip_special_tokens=True))


def begin_id(tokenizer: "transformers.PreTrainedTokenizerBase") -> int:
    """Id of the token that instructions and labels start with; InputError if the tokenizer names none."""
    if tokenizer.bos_token_id is None:
        raise InputError(
            f"the tokenizer in {tokenizer.name_or_path} has no begin token, expected one of its tokens as bos_token in "
            "tokenizer_config.json"
        )
    return tokenizer.bos_token_id


def check_ids(tokenizer: "transformers.PreTrainedTokenizerBase", vocab_size: int) -> None:
    """InputError if the model has no embedding for a token, be it one that was added or is for padding alone."""
    outside = sorted((number, token) for token, number in tokenizer.get_vocab().items() if number >= vocab_size)
    if outside:
        tokens = ", ".join(repr(token[:20]) for _, token in outside[:3]) + (", ..." if len(outside) > 3 else "")
        raise InputError(
            f"the tokenizer in {tokenizer.name_or_path} has token ids up to {outside[-1][0]}, expected less than "
            f"{vocab_size}, the vocab_size in config.json: the model has no embedding for {tokens}; give it those with "
            "transformers' model.resize_token_embeddings(len(tokenizer)) and save both again, or take the tokens out "
            "of the tokenizer's files"
        )


def load_tokenizer(folder: epath.PathLike) -> "transformers.PreTrainedTokenizerBase":
    """Reads the tokenizer of a folder, which may lie in a bucket; InputError when there is none."""
    folder = epath.Path(folder)
    present = [name for name in TOKENIZERS if (folder / name).exists()]
    if not present:
        raise InputError(f"{folder} holds no {' or '.join(TOKENIZERS)}")
    if present == ["tokenizer.model"]:
        _check_sentencepiece(folder)
    try:
        # Code that comes with a tokenizer is not run, nor is it asked for on the terminal.
        return transformers.AutoTokenizer.from_pretrained(_local(folder), trust_remote_code=False)
    except Exception as error:  # what tokenizers raise for a damaged file is no kind of it
        raise InputError(f"the tokenizer in {folder} cannot be read: {' '.join(str(error).split())[:300]}") from error


def _check_sentencepiece(folder: epath.Path) -> None:
    """InputError where transformers would make a tokenizer of a few tokens: of a file that is cut off or another."""
    if importlib.util.find_spec("sentencepiece") is None:
        raise InputError(
            f"{folder} holds a tokenizer.model and no tokenizer.json, for which the package sentencepiece is needed: "
            "pip install sentencepiece"
        )
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    try:
        model.ParseFromString((folder / "tokenizer.model").read_bytes())
        whole = model.pieces and model.HasField("trainer_spec")  # which follows them
    except Exception:  # protobuf's, whichever it came with
        whole = False
    if not whole:
        raise InputError(
            f"{folder / 'tokenizer.model'} is not a whole file of sentencepiece, expected one, or a tokenizer.json"
        )


def load_prompt(folder: epath.PathLike, end_token: str) -> Prompt:
    """The prompt for the tokenizer of a language-model folder; InputError as `load_tokenizer` and `Prompt`."""
    return Prompt(load_tokenizer(folder), end_token)


def _local(folder: epath.Path) -> str:
    """Transformers reads local files only: small files of a bucket are copied to a temporary folder."""
    if "://" not in str(folder):
        return os.fspath(folder)
    target = epath.Path(tempfile.mkdtemp(prefix="viavsp_tokenizer_"))
    for file in folder.iterdir():
        if file.suffix in (".json", ".model") and not file.is_dir():
            file.copy(target / file.name)
    return os.fspath(target)
