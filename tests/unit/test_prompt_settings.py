"""Each setting of the prompt reaches the rows of training and decoding, and what a checkpoint has to fit."""

import json
import shutil

import numpy as np
import pytest
from small_run import check_lengths, small_config
from transformers import AutoTokenizer

from viavsp_jax.app.recognizer_jax import JaxRecognizer
from viavsp_jax.data import pipeline
from viavsp_jax.experiment import load_experiment, prompt_fits
from viavsp_jax.runtime.errors import InputError

TEMPLATE = "{{ bos_token }}hỏi: {{ messages[0].content }} trả lời:{{ eos_token }}"
OWN, CHAT = {"prompt.instruction": "viết {target}: "}, {"prompt.chat": True}


@pytest.fixture(scope="module")
def model(folders, tmp_path_factory):
    """The demo's language model with a chat template and a second end."""
    folder = shutil.copytree(folders[0], tmp_path_factory.mktemp("model") / "llm")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [300, 2]}))
    return folder


@pytest.fixture
def config(model, folders):
    config = small_config(model, folders[1])
    config.data.row.positions = config.data.row.window = 200
    return config


@pytest.mark.parametrize(
    ("settings", "before", "after", "label"),
    [
        ({}, "<s>Hãy nhận diện câu tiếng Việt này. Đầu vào: ", "", "<s>"),
        (OWN, "<s>viết tiếng Việt: ", "", "<s>"),
        (CHAT, "<s>hỏi: Hãy nhận diện câu tiếng Việt này. Đầu vào: ", "trả lời:</s>", ""),
        (OWN | CHAT, "<s>hỏi: viết tiếng Việt: ", "trả lời:</s>", ""),
    ],
)
def test_rows_of_training_and_decoding_hold_the_prompt(config, settings, before, after, label):
    config.update_from_flattened_dict(settings)
    exp, tokenizer = load_experiment(config), AutoTokenizer.from_pretrained(config.llm.path)
    row = {name: value[0] for name, value in next(pipeline.training_batches(exp.settings.data, exp.prompt)).items()}
    records = pipeline.evaluation_records(exp.settings.data, "av_clean", "test")
    _, decoded = next(pipeline.decoding_batches(exp.settings.data, exp.prompt, records, 4, 32))
    first, length = np.isin(row["segment_ids"], (1, 2)), decoded["lengths"][0]
    training = row["tokens"][first], row["is_speech"][first]
    decoding = decoded["tokens"][0, :length], decoded["is_speech"][0, :length]
    shown = []
    for tokens, is_speech in (training, decoding):
        (speech,) = np.nonzero(is_speech)
        assert is_speech[speech[0] : speech[-1] + 1].all()
        assert tokenizer.decode(tokens[: speech[0]]).replace("<s> ", "<s>") == before
        shown.append(tokenizer.decode(tokens[speech[-1] + 1 :]).replace("<s> ", "<s>"))
    assert shown[0].startswith(after + label) and len(shown[0]) > len(after + label) and shown[1] == after
    assert (row["targets"][0] == tokenizer.bos_token_id) == (label == "<s>")


@pytest.mark.parametrize("settings", [{}, OWN, CHAT])
def test_a_row_has_to_have_room_for_all_of_it(config, tmp_path, settings):
    config.update_from_flattened_dict(settings)
    exp = load_experiment(config)
    sizes = []
    for split in ("train", "valid"):
        for one in pipeline.evaluation_records(exp.settings.data, "av_clean", split):
            parts = exp.prompt.instruction("vi", "vi"), one["cluster_counts"], exp.prompt.after
            sizes.append(sum(map(len, parts)) + len(exp.prompt.label(one["transcript"])) - 1)
    for size, fits in ((max(sizes), True), (max(sizes) - 1, False)):
        config.data.row.positions = config.data.row.window = size
        data = load_experiment(config).settings.data
        if fits:
            assert check_lengths(config, exp.prompt, tmp_path) == {}
            assert len(next(pipeline.training_batches(data, exp.prompt))["tokens"][0]) == size
        else:
            with pytest.raises(InputError, match=f"config.data.row.positions={max(sizes)}"):
                check_lengths(config, exp.prompt, tmp_path)


def test_an_end_token_that_is_empty_is_the_tokenizers_own(config):
    config.llm.end_token = ""
    prompt = load_experiment(config).prompt
    assert (prompt.end_token, prompt.end_ids) == ("</s>", (2, 300))
    config.llm.end_token = "<unk>"
    assert load_experiment(config).prompt.end_ids == (0,)


def test_every_setting_has_to_fit_the_checkpoint(config):
    fits = []
    for settings in ({}, OWN, CHAT, {"prompt.chat": False, "llm.end_token": "<unk>"}):
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict(settings)
        exp = load_experiment(changed)
        fits.append(prompt_fits(exp.prompt))
        assert fits[-1].items() <= exp.fits.items()
    assert [one["config.prompt.instruction"] for one in fits] == ["", "viết {target}: ", "", ""]
    assert [one["config.prompt.chat"] for one in fits] == [False, False, True, False]
    assert [one["config.llm.end_token"] for one in fits] == ["</s>", "</s>", "</s>", "<unk>"]
    sums = [one["tokenizer and instruction sha256"] for one in fits]
    assert len(set(sums)) == 3
    # As trainings before there were these settings recorded it.
    assert sums[0] == sums[3] == "e9fdaa65cfe5595e292de57210b8cdc3078e48934f14143fc8d37bfc7ce9ece7"


def test_transcribing_ends_where_the_prompt_says(config):
    exp = load_experiment(config)
    recognizer = JaxRecognizer.__new__(JaxRecognizer)  # without what it loads
    recognizer._experiment, recognizer._settings, recognizer._decoders = exp, exp.settings, {}
    assert recognizer._decoder(2).rules.end_ids == (2, 300)
