"""The units that the CTC head writes words in: pieces of words, learned from the transcripts of a training.

A unigram vocabulary (arXiv:1804.10959). Units never cross a space; number 0 is CTC's blank, and stands for a letter
that no transcript had.

Letters: N units of a text.
"""

import functools
import hashlib
import json
from collections.abc import Iterable

import numpy as np
from etils import epath
from tokenizers import Tokenizer
from tokenizers.decoders import Metaspace as Joined
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Metaspace
from tokenizers.trainers import UnigramTrainer

from viavsp_jax.runtime.atomic import write_bytes
from viavsp_jax.runtime.errors import InputError

FILE = "ctc_units.json"
MOST = 2048
BLANK = 0

_BLANK = "<blank>"
_DIGITS = 3  # of log-probabilities


class Units:
    """A vocabulary of at most MOST units."""

    def __init__(self, text: str, where: str = FILE):
        """From its JSON. Raises InputError if `text` is none, or not of units as `learn` makes them."""
        try:
            self._tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # what tokenizers raise for damaged text is no kind of it
            raise InputError(
                f"{where}: holds no units of a CTC head ({error}), expected as training wrote it"
            ) from error
        if self._tokenizer.token_to_id(_BLANK) != BLANK or not 1 < len(self) <= MOST:
            raise InputError(f"{where}: holds {len(self)} units, expected 2 to {MOST}, the first of them {_BLANK}")
        self.text = text
        # Vietnamese has some ten thousand syllables.
        self._of_word = functools.lru_cache(2**15)(self._encode)

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size()

    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    def of_words(self, text: str) -> list[tuple[int, ...]]:
        """The units of each word of a text; none of a word that cannot be written in them."""
        return [self._of_word(word) for word in text.split()]

    def of(self, text: str) -> np.ndarray:
        """int32[N], of all words that can be written."""
        return np.array([unit for word in self.of_words(text) for unit in word], np.int32)

    def words(self, units: Iterable[int]) -> str:
        """The text of units, blanks left out."""
        return self._tokenizer.decode([unit for unit in units if unit != BLANK]).strip()

    def _encode(self, word: str) -> tuple[int, ...]:
        units = self._tokenizer.encode(word).ids
        return () if BLANK in units else tuple(units)


def learn(transcripts: Iterable[str], size: int) -> Units:
    """At most `size` units, by which the words of these texts are written with few of them.

    Raises InputError if there are more letters than that.
    """
    transcripts = list(transcripts)
    letters = {letter for text in transcripts for letter in text if not letter.isspace()}
    if (least := len(letters) + 2) > size:  # with the blank and the mark of a word's beginning; the trainer would hang
        raise InputError(
            f"config.ctc.units is {size}, expected at least {least}, as the {len(letters)} letters of the "
            "transcripts need"
        )
    tokenizer = Tokenizer(Unigram())
    tokenizer.pre_tokenizer, tokenizer.decoder = Metaspace(), Joined()
    trainer = UnigramTrainer(vocab_size=size, special_tokens=[_BLANK], unk_token=_BLANK, show_progress=False)
    tokenizer.train_from_iterator(transcripts, trainer)
    found = json.loads(tokenizer.to_str())
    # Threads add in any order, and letters that are no piece otherwise come last in any, each less likely than the one
    # before: they all get the score of the least likely piece of several letters.
    last = min((score for piece, score in found["model"]["vocab"] if len(piece) > 1 and piece != _BLANK), default=0.0)
    pieces = {piece: round(max(score, last), _DIGITS) for piece, score in found["model"]["vocab"]}
    order = sorted(pieces, key=lambda piece: (piece != _BLANK, -pieces[piece], piece))
    found["model"]["vocab"] = [[piece, pieces[piece]] for piece in order]
    return Units(json.dumps(found, ensure_ascii=False))


def read(folder: epath.PathLike) -> Units:
    """Those of a work folder or an export. Raises InputError if they are missing or damaged."""
    path = epath.Path(folder) / FILE
    if not path.exists():
        raise InputError(f"{path}: no such file, expected the units of the CTC head, as training writes them there")
    return Units(path.read_bytes().decode(errors="replace"), str(path))


def write(folder: epath.PathLike, units: Units) -> None:
    """Where `read` finds them."""
    write_bytes(epath.Path(folder) / FILE, units.text.encode())
