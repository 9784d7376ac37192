"""Token ids of instructions and labels, against recorded ids of the reference and the tokenizer itself."""

import types

import pytest
from small_run import DEMO_LLAMA
from transformers import AutoTokenizer

from convert.hub import modeling_viavsp
from viavsp_jax.data.prompt import LANGUAGES, PromptSettings, instruction_text, load_prompt, one_line
from viavsp_jax.runtime.errors import InputError


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


def changed(folder, change):
    """The demo's tokenizer after `change(tokenizer)`, as its own methods save it."""
    tokenizer = AutoTokenizer.from_pretrained(DEMO_LLAMA)
    change(tokenizer)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("change", "size", "message"),
    [
        (
            lambda t: t.add_special_tokens({"pad_token": "[PAD]"}),
            678,
            r"up to 678, .* embedding for '\[PAD\]'; give",
        ),
        (lambda t: t.add_special_tokens({"unk_token": "[UNK]"}), 678, r"no embedding for '\[UNK\]';"),
        (lambda t: t.add_special_tokens({"bos_token": "[BOS]"}), 678, r"no embedding for '\[BOS\]';"),
        (lambda t: t.add_tokens(["xyz"]), 678, "no embedding for 'xyz';"),
        (lambda t: t.add_tokens([f"<{n}>" for n in range(9)]), 679, r"up to 686, .* for '<1>', '<2>', '<3>', \.\.\.;"),
    ],
)
def test_a_token_without_an_embedding(tmp_path, change, size, message):
    prompt = load_prompt(changed(tmp_path, change), "</s>")
    with pytest.raises(InputError, match=message):
        prompt.check_fits(size)
    prompt.check_fits(len(prompt.tokenizer))


def test_a_pad_token_of_the_model_is_used(tmp_path):
    prompt = load_prompt(changed(tmp_path, lambda t: t.add_special_tokens({"pad_token": "<unk>"})), "</s>")
    prompt.check_fits(678)
    assert prompt.pad_id == prompt.tokenizer.unk_token_id != prompt.end_id


def no_end_token(tokenizer):
    tokenizer.eos_token = None


def test_what_a_tokenizer_lacks(tmp_path):
    with pytest.raises(InputError, match="holds no tokenizer"):
        load_prompt(tmp_path, "</s>")
    own = r"\(config.llm.end_token\): set that to one it has, such as its own '</s>'$"
    with pytest.raises(InputError, match=rf"no token '<\|im_end\|>' {own}"):
        load_prompt(DEMO_LLAMA, "<|im_end|>")
    with pytest.raises(InputError, match="names no eos_token, for which an empty config.llm.end_token stands: set"):
        load_prompt(changed(tmp_path, no_end_token), "")
    with pytest.raises(InputError, match="has no chat template, which config.prompt.chat=True asks for: set that to F"):
        load_prompt(DEMO_LLAMA, "</s>", PromptSettings(chat=True))


def test_errors(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="cannot be read"):
        load_prompt(tmp_path, "</s>")
