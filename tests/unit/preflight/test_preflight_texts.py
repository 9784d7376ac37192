"""What tokenizers of several kinds make of transcripts."""

import json
import shutil

import numpy as np
import pytest
import transformers
from tiny_llama import write_tokenizer

from viavsp_jax.data.lengths import Records, Split
from viavsp_jax.data.prompt import Prompt, load_prompt
from viavsp_jax.preflight import texts
from viavsp_jax.runtime.errors import InputError


def split_of(transcripts, name="av_clean"):
    ids = [f"clip{i}" for i in range(len(transcripts))]
    listed = Records(ids, [("vi", "vi")] * len(ids), list(transcripts), np.ones(len(ids)), np.ones(len(ids)))

    class Source:
        split = "train"

    return Split(name, Source(), listed, np.ones(len(ids)))


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> Prompt:
    """A small vocabulary without any way to write other characters."""
    folder = tmp_path_factory.mktemp("words")
    write_tokenizer(folder)
    return load_prompt(folder, "</s>")


@pytest.fixture(scope="module")
def bytes_too(folders) -> Prompt:
    """The demo's, which writes what it does not know as bytes."""
    return load_prompt(folders[0], "</s>")


def test_characters_that_cannot_be_written(words):
    found = texts.cover(words, [split_of(["xin chào", "xin ☃ chào", "hôm nay ☃ ж"])])
    assert found.lost == {"☃": "clip1", "ж": "clip2"} and found.unknown == 3 and found.words == 9
    (told,) = texts.warnings(found)
    assert "cannot write 2 of the characters" in told and "'ж' U+0436 (clip2), '☃' U+2603 (clip1):" in told
    assert f"{found.unknown / found.tokens:.1%} of them unknown" in str(found)
    clean = texts.cover(words, [split_of(["xin chào các bạn", "hôm nay trời đẹp"])])
    assert clean.lost == {} and clean.unknown == 0 and texts.warnings(clean) == [] and texts.check(clean) is None


def test_a_character_of_one_record_is_found_among_many(words):
    transcripts = ["xin chào"] * 3 * texts.SAMPLE
    transcripts[4321] = "xin ☃"
    assert texts.cover(words, [split_of(transcripts)]).lost == {"☃": "clip4321"}


def test_texts_of_another_language_are_refused(words):
    with pytest.raises(InputError, match="of the label tokens are unknown to the tokenizer: take a language model"):
        texts.check(texts.cover(words, [split_of(["привет мир", "xin chào các bạn"])]))


def test_bytes_are_told_where_they_are_many(bytes_too):
    few = texts.cover(bytes_too, [split_of(["một hai ba bốn năm sáu bảy ☃"] + ["một hai ba"] * 9)])
    assert few.lost == {} and 0 < few.pieces <= 0.2 * few.tokens and texts.warnings(few) == []
    many = texts.cover(bytes_too, [split_of(["привет мир"])])
    assert many.lost == {} and many.unknown == 0
    (told,) = texts.warnings(many)
    assert "of the label tokens are bytes of characters" in told


def test_texts_that_come_back_changed(folders, tmp_path):
    """A tokenizer whose decoder joins words."""
    shutil.copytree(folders[0], tmp_path / "llm")
    path = tmp_path / "llm" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["decoder"]["decoders"].append({"type": "Replace", "pattern": {"String": "hai ba"}, "content": "haiba"})
    path.write_text(json.dumps(content))
    found = texts.cover(load_prompt(tmp_path / "llm", "</s>"), [split_of(["một hai", "hai ba", "hai ba bốn"])])
    assert found.changed == ("clip1", "hai ba", "haiba") and found.num_changed == 2
    assert (
        "2 transcripts do not come back from the tokenizer as they are, the first of record clip1"
        in (texts.warnings(found)[0])
    )


def test_a_token_without_an_embedding_is_named_with_its_record(folders):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders[0])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<picture>"]})
    prompt = Prompt(tokenizer, "</s>")
    prompt.check_fits(len(tokenizer) - 1)
    with pytest.raises(InputError, match="record clip1 of av_clean .train.: .* has the token '<picture>', for which"):
        texts.cover(prompt, [split_of(["một", "một <picture> hai"])])
