"""Prompts for the kinds of tokenizers that language models come with, against transformers' own ids and templates."""

import json

import numpy as np
import pytest
from tiny_tokenizers import KINDS
from transformers import AutoTokenizer

from viavsp_jax.data import packing
from viavsp_jax.data.prompt import RECOGNITION, PromptSettings, load_prompt
from viavsp_jax.runtime.errors import InputError

CHAT, QUESTION = PromptSettings(chat=True), "Write what is said:"
# By kind: the begin token, which transformers itself puts before a text ("adds"), and what ends a text.
BEGIN = {
    "sentencepiece_file": "<s>", "llama2_chat": "<s>", "unigram_without_begin": None, "llama3": "<|begin_of_text|>",
    "qwen": None, "gemma": "<bos>", "gpt2": "<|endoftext|>",
}  # fmt: skip
ADDS = ("llama2_chat", "llama3", "gemma")
ENDS = {
    "sentencepiece_file": ["</s>"], "llama2_chat": ["</s>"], "unigram_without_begin": ["<eos>"],
    "llama3": ["<|eot_id|>", "<|end_of_text|>"], "qwen": ["<|im_end|>", "<|endoftext|>"],
    "gemma": ["<eos>", "<end_of_turn>"], "gpt2": ["<|endoftext|>"],
}  # fmt: skip
WITH_TEMPLATE = ("llama2_chat", "llama3", "qwen", "gemma")
SPOKEN = ["xin chào các bạn", "một hai ba bốn", "£ 😀"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}
    for kind, write in KINDS.items():
        made[kind] = tmp_path_factory.mktemp(kind)
        write(made[kind])
    return made


def record(transcript="một hai"):
    return {
        "id": "one", "source_language": "vi", "target_language": "vi", "transcript": transcript,
        "features": np.ones((6, 2), np.float16), "cluster_counts": np.array([2, 3, 1], np.int32),
    }  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_ids_follow_the_rule(folders, kind):
    prompt, tokenizer = load_prompt(folders[kind], ""), AutoTokenizer.from_pretrained(folders[kind])
    begin, end = (None if one is None else tokenizer.convert_tokens_to_ids(one) for one in (BEGIN[kind], ENDS[kind][0]))
    assert (prompt.begin_id, prompt.end_id, prompt.end_token) == (begin, end, ENDS[kind][0])
    start = [] if begin is None else [begin]
    for before, text in ((prompt.instruction("vi", "vi"), RECOGNITION), (None, SPOKEN[0]), (None, SPOKEN[1])):
        ids = tokenizer(text)["input_ids"]
        ids = ids if kind in ADDS else start + ids
        if before is None:  # a label must not begin with what ends it
            assert prompt.label(text) == (ids[1:] if begin == end else ids) + [end]
        else:
            assert before == ids
    assert prompt.after == ()
    assert prompt.label_lengths(SPOKEN) == [len(prompt.label(text)) for text in SPOKEN]


@pytest.mark.parametrize("kind", KINDS)
def test_every_end_cuts_a_text(folders, kind):
    prompt = load_prompt(folders[kind], "")
    assert prompt.tokenizer.convert_ids_to_tokens(prompt.end_ids) == ENDS[kind]
    more = prompt.label("hai")
    for end in prompt.end_ids:
        assert prompt.text([*prompt.label(SPOKEN[0])[:-1], end, *more]) == SPOKEN[0]
        assert prompt.text([end, *more]) == ""
    for token in (prompt.end_token, *ENDS[kind][1:]):  # only those of the tokenizer's own end
        other = load_prompt(folders[kind], token)
        assert len(other.end_ids) == (len(ENDS[kind]) if token == prompt.end_token else 1)
        assert other.label("hai")[-1] == other.end_ids[0] == prompt.tokenizer.convert_tokens_to_ids(token)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_may_have_more_embeddings_than_tokens_and_none_for_padding(folders, kind):
    prompt = load_prompt(folders[kind], "")
    for size in (len(prompt.tokenizer), 1000):
        prompt.check_fits(size)
    assert prompt.pad_id == {"unigram_without_begin": 0, "gemma": 0, "qwen": 300}.get(kind, prompt.end_id)


def test_a_special_token_without_a_use_needs_no_embedding(folders):
    prompt = load_prompt(folders["gemma"], "")
    picture = prompt.tokenizer.convert_tokens_to_ids("<picture>")
    assert picture == len(prompt.tokenizer) - 1
    assert picture in prompt.label("một <picture>")
    prompt.check_fits(picture)
    shape = packing.RowShape(positions=200, frames=9, labels=99, clips=1, window=200)
    with pytest.raises(InputError, match="record one: 'một <picture>' has the token '<picture>', for which the model"):
        packing.ToUtterance(prompt, shape, np.float32).map(record("một <picture>"))
    with pytest.raises(InputError, match="no embedding for '<picture>'"):
        load_prompt(folders["gemma"], "<picture>").check_fits(picture)


@pytest.mark.parametrize("kind", WITH_TEMPLATE)
def test_a_chat_is_what_the_models_own_template_makes_of_it(folders, kind):
    prompt, tokenizer = (
        load_prompt(folders[kind], "", PromptSettings(QUESTION, True)),
        AutoTokenizer.from_pretrained(folders[kind]),
    )
    message = {"role": "user", "content": QUESTION}
    expected = tokenizer.apply_chat_template(
        [message], add_generation_prompt=True, return_dict=False, date_string="26 Jul 2024"
    )
    assert prompt.instruction("vi", "vi") + list(prompt.after) == expected
    begin = [] if BEGIN[kind] is None else [tokenizer.convert_tokens_to_ids(BEGIN[kind])]
    assert expected[:1] == begin or not begin
    assert len(begin) == expected.count(prompt.begin_id)
    assert prompt.label(SPOKEN[0]) == tokenizer(SPOKEN[0], add_special_tokens=False)["input_ids"] + [prompt.end_id]
    assert prompt.label_lengths(SPOKEN) == [len(prompt.label(text)) for text in SPOKEN]
    assert prompt.text(prompt.label(SPOKEN[0])) == SPOKEN[0]


@pytest.mark.parametrize("kind", WITH_TEMPLATE)
def test_the_space_before_the_speech_is_not_trimmed(folders, kind):
    """The reference's instruction ends with one, and most templates trim what a user says."""
    prompt = load_prompt(folders[kind], "", CHAT)
    opening, closing = prompt.wording.chat
    assert prompt.tokenizer.decode(prompt.instruction("vi", "vi")).endswith("Đầu vào: ")
    assert prompt.tokenizer.decode(prompt.after, skip_special_tokens=False).strip() == closing.strip()
    assert opening and prompt.instruction("en", "vi") != prompt.instruction("fr", "vi")


def test_a_template_that_tells_the_date_tells_the_same_one_every_day(folders):
    tokenizer = AutoTokenizer.from_pretrained(folders["llama3"])
    assert "26 Jul 2024" not in tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    prompt = load_prompt(folders["llama3"], "", CHAT)
    assert "Today Date: 26 Jul 2024\n\n<|eot_id|>" in prompt.wording.chat[0]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "has no chat template, which config.prompt.chat=True asks for: set that to False, or take a model"),
        ("{{ messages[0].content | upper }}", "does not repeat what a user says word for word, expected the instruct"),
        ("{{ messages[0].content * 2 }}", "does not repeat what a user says word for word"),
        ("user: go on", "does not repeat what a user says word for word"),
        ("{{ raise_exception('a system message is missing') }}", "cannot be used: a system message is missing$"),
        ("{{ messages[0].content", "cannot be used: unexpected end of template"),
        (
            "{{ messages[0].content | length }} letters: {{ messages[0].content }}",
            "puts other words around other instr",
        ),
    ],
)
def test_a_template_that_is_of_no_use(folders, tmp_path, template, message):
    tokenizer = AutoTokenizer.from_pretrained(folders["qwen"])
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        load_prompt(tmp_path, "", CHAT)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    load_prompt(tmp_path, "")


def test_an_instruction_of_ones_own(folders):
    prompt = load_prompt(folders["llama3"], "", PromptSettings("{source} to {target}: "))
    tokenizer = prompt.tokenizer
    for source, target, text in (("vi", "vi", "tiếng Việt to tiếng Việt: "), ("en", "vi", "tiếng Anh to tiếng Việt: ")):
        assert prompt.instruction(source, target) == tokenizer(text)["input_ids"]
    with pytest.raises(InputError, match="'de' is unknown"):
        prompt.instruction("de", "vi")


def test_whatever_changes_a_prompt_changes_its_sum(folders):
    settings = [PromptSettings(), CHAT, PromptSettings(QUESTION), PromptSettings(QUESTION, True)]
    sums = {load_prompt(folders["qwen"], "", one).sha256() for one in settings}
    prompt = load_prompt(folders["qwen"], "", CHAT)
    prompt.after = prompt.after[:-1]
    assert len(sums | {prompt.sha256()}) == 5


@pytest.mark.parametrize("kind", ["llama3", "qwen"])
@pytest.mark.parametrize("chat", [False, True])
def test_rows_hold_all_parts_in_order(folders, kind, chat):
    prompt, clip = load_prompt(folders[kind], "", PromptSettings(chat=chat)), record()
    before, label, after = prompt.instruction("vi", "vi"), prompt.label("một hai"), list(prompt.after)
    assert bool(after) == chat
    whole = [*before, 0, 0, 0, *after, *label]
    shape = packing.RowShape(positions=len(whole) - 1, frames=6, labels=len(label), clips=1, window=len(whole) - 1)
    utterance = packing.ToUtterance(prompt, shape, np.float32).map(clip)
    assert utterance["tokens"].tolist() == whole[:-1]
    assert np.flatnonzero(utterance["is_speech"]).tolist() == [len(before) + i for i in range(3)]
    assert utterance["frame_slot"].tolist() == [len(before) + i for i in (0, 0, 1, 1, 1, 2)]
    # Each label token is predicted where the one before it is read: the first after the last of the prompt.
    assert utterance["targets"].tolist() == label
    assert utterance["label_index"].tolist() == [len(whole) - len(label) - 1 + i for i in range(len(label))]
    shown = packing.speech_prompt(clip, prompt)
    assert shown["tokens"].tolist() == whole[: -len(label)] and len(shown["is_speech"]) == len(shown["tokens"])


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ([302, 300], None, (302, 300)),
        (302, 5, (302,)),
        (None, [302, 300, 302], (302, 300)),
        (None, 302, (302,)),
        (None, None, (302,)),
        ([300, 7], None, (302,)),  # the label's end is none of them: they are about other texts
    ],
)
def test_where_ends_are_read_from(folders, tmp_path, generation, config, expected):
    AutoTokenizer.from_pretrained(folders["qwen"]).save_pretrained(tmp_path)
    for name, ids in (("generation_config.json", generation), ("config.json", config)):
        settings = {"model_type": "qwen2", "eos_token_id": ids}
        (tmp_path / name).write_text(json.dumps(settings))
    assert load_prompt(tmp_path, "").end_ids == load_prompt(tmp_path, "<|im_end|>").end_ids == expected


@pytest.mark.parametrize("content", ["{", "[]", '{"eos_token_id": "</s>"}', '{"eos_token_id": [1, true]}'])
def test_ends_that_are_none(folders, tmp_path, content):
    AutoTokenizer.from_pretrained(folders["qwen"]).save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(InputError, match="generation_config.json(: eos_token_id is .*, expected| is not a JSON file)"):
        load_prompt(tmp_path, "")
