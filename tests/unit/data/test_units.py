"""Units of words: learned, written, read; and what rows hold of them."""

import itertools
import pickle

import numpy as np
import pytest

from viavsp_jax.data import vocabulary
from viavsp_jax.data.packing import ClipUnits
from viavsp_jax.data.units import BLANK, MOST, Units
from viavsp_jax.data.vocabulary import learn
from viavsp_jax.prepare.demo.sentences import sample_sentences
from viavsp_jax.runtime.errors import InputError

TEXTS = sample_sentences(0, 300, "train")


@pytest.fixture(scope="module")
def learned():
    return learn(TEXTS, 100)


def test_texts_come_back_and_units_never_cross_a_space(learned):
    assert 2 < len(learned) <= 100
    for text in TEXTS:
        assert learned.words(learned.of(text)) == text
        words = learned.of_words(text)
        assert len(words) == len(text.split()) and all(words) and BLANK not in itertools.chain(*words)
        for word, own in zip(text.split(), words, strict=True):
            assert learned.words(own) == word
    assert learned.of(TEXTS[0]).dtype == np.int32


def test_words_with_letters_that_no_text_had(learned):
    assert learned.of_words("nhà ŵhat  phở") == [learned.of_words("nhà")[0], (), learned.of_words("phở")[0]]
    assert learned.words(learned.of("nhà ŵhat phở")) == "nhà phở"
    assert learned.of("").tolist() == [] and learned.words([0, 0]) == ""


def test_the_same_texts_give_the_same_units(learned):
    """Whatever their order and however many threads there are: every process of a run learns its own."""
    assert learn(TEXTS[::-1], 100).text == learned.text and learn(TEXTS, 100).sha256() == learned.sha256()


def test_more_letters_than_units():
    with pytest.raises(InputError, match="config.ctc.units is 8, expected at least 9, as the 7 letters"):
        learn(["một hai ba"], 8)
    assert len(learn(["một hai ba"], 9)) == 9


def test_they_can_be_pickled(learned):
    assert pickle.loads(pickle.dumps(learned)).text == learned.text


def test_kept_in_a_folder(learned, tmp_path):
    vocabulary.write(tmp_path, learned)
    assert vocabulary.read(tmp_path).of(TEXTS[3]).tolist() == learned.of(TEXTS[3]).tolist()
    with pytest.raises(InputError, match="none/ctc_units.json: no such file, expected the units of the CTC head"):
        vocabulary.read(tmp_path / "none")


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"version": "1.0"}', "\0"])
def test_files_that_are_none(text, tmp_path):
    (tmp_path / vocabulary.FILE).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="ctc_units.json: holds no units of a CTC head"):
        vocabulary.read(tmp_path)


def test_files_of_other_units(learned):
    with pytest.raises(ValueError, match=f"expected 2 to {MOST}, the first of them <blank>"):
        Units(learned.text.replace("<blank>", "<pad>"))


def test_what_a_row_holds(learned):
    text = TEXTS[0]
    own = learned.of(text)
    row = ClipUnits(learned, 80)
    assert row.of(text, 80).tolist() == [*own, *[0] * (80 - len(own))]
    repeats = int((own[1:] == own[:-1]).sum())
    assert row.of(text, len(own) + repeats).any() and not row.of(text, len(own) + repeats - 1).any()
    again = f"{text.split()[0]} {text.split()[0]}"
    assert len(learned.of(again)) == 2 * len(learned.of(text.split()[0]))
