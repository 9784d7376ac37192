"""The units that the CTC head writes words in: pieces of words, learned from the transcripts of a training.

A unigram vocabulary (arXiv:1804.10959), see vocabulary.py. Units never cross a space; number 0 is CTC's blank, and
stands for a letter that no transcript had. Exports carry a copy of this file: it imports nothing of the project.

Letters: N units of a text.
"""

import functools
import hashlib
from collections.abc import Iterable

import numpy as np
from tokenizers import Tokenizer

FILE = "ctc_units.json"
MOST = 2048
BLANK = 0

BLANK_NAME = "<blank>"


class Units:
    """A vocabulary of at most MOST units."""

    def __init__(self, text: str, where: str = FILE):
        """From its JSON. Raises ValueError if `text` is none, or not of units as vocabulary.learn makes them."""
        try:
            self._tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # what tokenizers raise for damaged text is no kind of it
            raise ValueError(
                f"{where}: holds no units of a CTC head ({error}), expected as training wrote it"
            ) from error
        if self._tokenizer.token_to_id(BLANK_NAME) != BLANK or not 1 < len(self) <= MOST:
            raise ValueError(f"{where}: holds {len(self)} units, expected 2 to {MOST}, the first of them {BLANK_NAME}")
        self.text = text
        # Vietnamese has some ten thousand syllables.
        self._of_word = functools.lru_cache(2**15)(self._encode)

    def __reduce__(self) -> tuple:
        return Units, (self.text,)  # to pickle it: the cache cannot be

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
