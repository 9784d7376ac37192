"""Token ids of instructions and labels, against recorded ids of the reference and the tokenizer itself."""

import types

import pytest
from small_run import DEMO_LLAMA

from convert.hub import modeling_viavsp
from viavsp_jax.data.prompt import LANGUAGES, instruction_text, load_prompt, one_line
from viavsp_jax.errors import InputError


@pytest.fixture(scope="module")
def prompt():
    return load_prompt(DEMO_LLAMA, "</s>")


def test_instruction_is_the_references():
    assert instruction_text("vi", "vi") == "Hãy nhận diện câu tiếng Việt này. Đầu vào: "
    assert instruction_text("en", "vi") == "Translate this tiếng Anh speech to tiếng Việt. Input: "


def test_ids_spell_the_text(prompt):
    ids = prompt.instruction("vi", "vi")
    assert ids[0] == prompt.begin_id and prompt.begin_id not in ids[1:] and prompt.end_id not in ids
    # The trailing space is a token of its own and must not be lost.
    assert prompt.tokenizer.convert_ids_to_tokens(ids)[-1] == "▁"
    assert prompt.tokenizer.decode(ids[1:]) == instruction_text("vi", "vi")


@pytest.mark.parametrize("text", ["hôm qua tôi đã mua hai quyển sách", "xin chào thế giới", "£ 😀"])
def test_label_round_trip(prompt, text):
    ids = prompt.label(text)
    assert ids[0] == prompt.begin_id and ids[-1] == prompt.end_id
    assert prompt.text(ids) == text
    assert prompt.text([*ids, 300, 301]) == text  # what follows the end token does not count


def test_a_text_is_one_line_here_and_in_exports(prompt):
    """The vocabulary has a token for every byte."""
    export = types.SimpleNamespace(tokenizer=prompt.tokenizer, until_end=lambda ids: ids[: ids.index(prompt.end_id)])
    for code in (*range(0x100), 0x2028, 0x2029, 0x3000, 0x1F600):
        middle = prompt.tokenizer.convert_tokens_to_ids([f"<0x{byte:02X}>" for byte in chr(code).encode()])
        ids = [*prompt.label("một")[1:-1], *middle, *middle, *prompt.label("hai")[1:]]
        text = prompt.text(ids)
        assert modeling_viavsp.ViAVSPModel.text(export, ids) == text
        space = chr(code).isspace() or code < 0x20 or 0x7F <= code < 0xA0
        assert text == ("một hai" if space else f"một{chr(code) * 2} hai"), hex(code)
    assert one_line("\n một\x00\r\nhai\u2028 ba\t") == "một hai ba"


def test_every_language_pair_has_an_instruction(prompt):
    texts = {instruction_text(a, b) for a in LANGUAGES for b in LANGUAGES}
    assert len(texts) == len(LANGUAGES) ** 2
    with pytest.raises(InputError, match="'de' is unknown"):
        prompt.instruction("vi", "de")


def test_a_tokenizer_of_more_tokens_than_the_model_has(prompt):
    prompt.check_fits(678)
    with pytest.raises(InputError, match="llama has token ids up to 677, expected less than 677, the vocab_size"):
        prompt.check_fits(677)


def test_errors(tmp_path):
    with pytest.raises(InputError, match="holds no tokenizer"):
        load_prompt(tmp_path, "</s>")
    with pytest.raises(InputError, match=r"no token '<\|im_end\|>'"):
        load_prompt(DEMO_LLAMA, "<|im_end|>")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="cannot be read"):
        load_prompt(tmp_path, "</s>")
