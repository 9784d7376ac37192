"""The instruction before the speech and the label after it, as token ids."""

import dataclasses
import hashlib
import importlib.util
import json
import os
import re
import tempfile
from collections.abc import Sequence

import transformers  # its parts are imported when they are used: they import PyTorch, where it is installed
from etils import epath

from viavsp_jax.data.chat import chat_parts
from viavsp_jax.data.prompt_ids import (
    Wording,
    after_speech,
    before_speech,
    label_start,
    text_ids,
    until_end,
)
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


@dataclasses.dataclass(frozen=True)
class PromptSettings:
    """The fields of `config.prompt`."""

    instruction: str = ""  # with {source} and {target} for names of languages; "": the reference's
    chat: bool = False


REFERENCE = PromptSettings()


def wording(settings: PromptSettings) -> Wording:
    """What a prompt says, but for the chat template, which a tokenizer has."""
    return Wording(settings.instruction or RECOGNITION, settings.instruction or TRANSLATION, LANGUAGES)


def instruction_text(source: str, target: str, settings: PromptSettings = REFERENCE) -> str:
    """What the model is asked; by default in the reference's words, with their trailing space.

    Raises InputError for a language the reference has no name for.
    """
    try:
        return wording(settings).instruction(source, target)
    except ValueError as error:
        raise InputError(str(error)) from None


def one_line(text: str) -> str:
    """A text as subtitles and tables can hold it: white space and control characters between words are one space."""
    return " ".join(_CONTROLS.sub(" ", text).split())


class Prompt:
    """Token ids of instructions and labels, and text of generated ids, for one tokenizer (see prompt_ids.py)."""

    def __init__(
        self,
        tokenizer: "transformers.PreTrainedTokenizerBase",
        end_token: str,
        settings: PromptSettings = REFERENCE,
        eos_ids: Sequence[int] = (),
    ):
        """
        Args:
          tokenizer: of the language model.
          end_token: closes every label (the reference: `</s>`, also for models whose own EOS differs); "": its own EOS.
          settings: what the model is asked, and whether in a chat.
          eos_ids: the tokens that end a text by the model's own files. They count where `end_token` is the tokenizer's
            own EOS and one of them: any other end is not what these files are about.

        Raises InputError if the tokenizer lacks the end token or, for a chat, a template of use.
        """
        self.tokenizer, self.settings, self.begin_id = tokenizer, settings, begin_id(tokenizer)
        self.end_token, self.end_id = _end(tokenizer, end_token)
        others = [one for one in eos_ids if one not in (self.end_id, self.begin_id)]
        own = self.end_id == tokenizer.eos_token_id and self.end_id in eos_ids
        self.end_ids: tuple[int, ...] = (self.end_id, *(others if own else ()))  # any of them ends what is generated
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.end_id
        self.wording = wording(settings)
        if settings.chat:
            self.wording = dataclasses.replace(self.wording, chat=chat_parts(tokenizer, self.wording))
        self.after = tuple(after_speech(tokenizer, self.wording))  # between speech and label
        self._start = label_start(tokenizer, self.wording, self.end_id)
        self._without_embedding: set[int] = set()  # known when the model is
        self._before: dict[tuple[str, str], tuple[int, ...]] = {}  # by languages: there are few for many clips

    def check_fits(self, vocab_size: int) -> None:
        """Raises InputError if the model has no embedding for a token: the tokenizer is that of another model."""
        check_ids(self.tokenizer, vocab_size, self.end_id)
        self._without_embedding = {one for one in self.tokenizer.get_vocab().values() if one >= vocab_size}

    def sha256(self) -> str:
        """Another one whenever a token has another id, or any language another instruction."""
        vocabulary = sorted(self.tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
        # What earlier versions did not have is left out where it is not used: their sums stay.
        chat = [self.after] if self.wording.chat is not None else []
        return hashlib.sha256(json.dumps([vocabulary, self.instructions(), *chat]).encode()).hexdigest()

    def instructions(self) -> list[list[int]]:
        """Of all pairs of languages."""
        return [self.instruction(source, target) for source in LANGUAGES for target in LANGUAGES]

    def instruction(self, source: str, target: str) -> list[int]:
        """All that precedes the speech: begin token, if there is one, and instruction.

        Raises InputError for a language the reference has no name for.
        """
        if (source, target) not in self._before:
            try:
                self._before[source, target] = tuple(before_speech(self.tokenizer, self.wording, source, target))
            except ValueError as error:
                raise InputError(str(error)) from None
        return list(self._before[source, target])

    def label(self, text: str) -> list[int]:
        """Begin token, if there is one and no chat, text, end token: what the model learns to write.

        Raises InputError for a text with a token for which the model has no embedding.
        """
        ids = text_ids(self.tokenizer, text)
        if not self._without_embedding.isdisjoint(ids):
            token = self.tokenizer.convert_ids_to_tokens(min(self._without_embedding.intersection(ids)))
            raise InputError(f"{text[:99]!r} has the token {token!r}, for which the model has no embedding")
        return [*self._start, *ids, self.end_id]

    def label_lengths(self, texts: list[str]) -> list[int]:
        """The lengths of the labels of many texts, faster than one by one."""
        more = len(self._start) + 1
        return [len(ids) + more for ids in self.tokenizer(texts, add_special_tokens=False)["input_ids"]]

    def text(self, ids: list[int]) -> str:
        """Text of generated ids, up to what ends them, in one line."""
        ids = until_end(list(ids), self.end_ids)
        return one_line(self.tokenizer.decode(ids, skip_special_tokens=True))


def begin_id(tokenizer: "transformers.PreTrainedTokenizerBase") -> int | None:
    """Id of the token that instructions and labels start with; None if the tokenizer names none."""
    return tokenizer.bos_token_id


def _end(tokenizer: "transformers.PreTrainedTokenizerBase", end_token: str) -> tuple[str, int]:
    """The token that closes labels, and its id; InputError if the tokenizer has none."""
    token = end_token or tokenizer.eos_token
    if not token:
        raise InputError(
            f"the tokenizer in {tokenizer.name_or_path} names no eos_token, for which an empty config.llm.end_token "
            "stands: set that to a token it has"
        )
    number = tokenizer.get_vocab().get(token)
    if number is None:
        own = f", such as its own {tokenizer.eos_token!r}" if tokenizer.eos_token else ""
        raise InputError(
            f"the tokenizer in {tokenizer.name_or_path} has no token {token!r} (config.llm.end_token): set "
            f"that to one it has{own}"
        )
    return token, number


def check_ids(tokenizer: "transformers.PreTrainedTokenizerBase", vocab_size: int, end_id: int | None = None) -> None:
    """InputError if the model has no embedding for a token, be it one that was added or is for padding alone.

    Special tokens that nothing here is made of may lack one, as that of pictures in the text models of Gemma 3.
    """
    t = tokenizer
    used = {t.bos_token_id, t.eos_token_id, t.pad_token_id, t.unk_token_id, end_id}
    unused = {number for number, token in t.added_tokens_decoder.items() if token.special} - used
    outside = sorted((n, token) for token, n in t.get_vocab().items() if n >= vocab_size and n not in unused)
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


def load_prompt(folder: epath.PathLike, end_token: str, settings: PromptSettings = REFERENCE) -> Prompt:
    """The prompt for the tokenizer of a language-model folder; InputError as `load_tokenizer` and `Prompt`."""
    return Prompt(load_tokenizer(folder), end_token, settings, read_eos_ids(folder))


def read_eos_ids(folder: epath.PathLike) -> tuple[int, ...]:
    """The tokens that end a text by generation_config.json or, where that names none, config.json.

    Raises InputError if a file names what is no token id.
    """
    for path in (epath.Path(folder) / name for name in ("generation_config.json", "config.json")):
        if not path.exists():
            continue
        try:
            found = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
        except (ValueError, AttributeError, RecursionError) as error:
            raise InputError(f"{path} is not a JSON file with settings ({error})") from None
        ids = found if isinstance(found, list) else [] if found is None else [found]
        if any(type(one) is not int or one < 0 for one in ids):
            raise InputError(f"{path}: eos_token_id is {str(found)[:99]}, expected a token id or a list of them")
        if ids:
            return tuple(dict.fromkeys(ids))
    return ()


def _local(folder: epath.Path) -> str:
    """Transformers reads local files only: small files of a bucket are copied to a temporary folder."""
    if "://" not in str(folder):
        return os.fspath(folder)
    target = epath.Path(tempfile.mkdtemp(prefix="viavsp_tokenizer_"))
    for file in folder.iterdir():
        if file.suffix in (".json", ".model") and not file.is_dir():
            file.copy(target / file.name)
    return os.fspath(target)
