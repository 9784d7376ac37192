"""Recordings by an export whose language model is a server's: what is sent, what becomes of the answers, refusals."""

import json
import shutil
import sys
import threading

import pytest
import torch
from ports import free_port
from vllm_stand_in import MergedModel, read_prompt, serving

from convert.hub.modeling_viavsp import ViAVSPModel
from viavsp_jax import transcribe
from viavsp_jax.app.recognizer import Utterance
from viavsp_jax.app.transcriber import Transcriber
from viavsp_jax.data import media
from viavsp_jax.prepare.manifest_files import read_manifest
from viavsp_jax.runtime.errors import InputError

MODELS = {"object": "list", "data": [{"id": "merged", "object": "model"}]}


@pytest.fixture(scope="module")
def merged(demo_merged):
    return MergedModel(demo_merged / "merged")


@pytest.fixture(scope="module")
def address(merged):
    with serving(merged) as url:
        yield url


@pytest.fixture(scope="module")
def by_server(demo_merged, address):
    return Transcriber.from_pretrained(demo_merged, server=f"{address}/", device="cpu")


@pytest.mark.parametrize("modality", ["av", "audio", "video"])
def test_texts_and_scores_are_those_of_the_export(by_server, demo_merged, demo_clips, modality):
    alone = Transcriber.from_pretrained(demo_merged, device="cpu")
    ours, theirs = (x(demo_clips, modality=modality, vad=False, num_beams=1) for x in (by_server, alone))
    assert len({transcript.text for transcript in ours}) > 1
    for one, other in zip(ours, theirs, strict=True):
        (one,), (other,) = one.segments, other.segments
        assert (one.times, one.text) == (other.times, other.text)
        assert one.score == pytest.approx(other.score, abs=1e-4)
        assert one.run_lengths.tolist() == other.run_lengths.tolist()


def test_a_request_is_what_vllm_documents(by_server, merged, demo_merged, demo_folder, demo_clips):
    model = ViAVSPModel.from_pretrained(demo_merged)
    merged.bodies.clear()
    by_server(demo_clips, modality="audio", vad=False, languages=("vi", "en"))
    listed = read_manifest(demo_folder / "manifest", "test")
    for body, clip in zip(merged.bodies, listed, strict=True):
        prompt = read_prompt(body)
        expected, _ = model.embed(*model.encode(None, [media.read_audio(clip.audio)]), [("vi", "en")])
        assert prompt.dtype == model.dtype and torch.equal(prompt, expected[0])
        del body["prompt_embeds"]  # and no prompt beside it
        assert body == {
            "model": "merged", "max_tokens": 16, "min_tokens": 0, "temperature": 0, "ignore_eos": True,
            "stop_token_ids": list(model.end_ids), "return_token_ids": True, "logprobs": 0,
        }  # fmt: skip


def test_windows_of_a_batch_are_sent_at_the_same_time_without_padding(demo_merged, merged, demo_folder, monkeypatch):
    sounds = [media.read_audio(clip.audio) for clip in read_manifest(demo_folder / "manifest", "test")]
    clips = [Utterance(None, samples, -(-len(samples) // 640)) for samples in sounds]
    monkeypatch.setattr(merged, "together", threading.Barrier(len(clips)))
    merged.bodies.clear()
    with serving(merged) as url:
        found = Transcriber.from_pretrained(demo_merged, server=url).recognizer(clips, ("vi", "vi"), 1)
    alone = Transcriber.from_pretrained(demo_merged).recognizer(clips, ("vi", "vi"), 1)
    assert [x.hypotheses[0].text for x in found] == [x.hypotheses[0].text for x in alone]
    assert len({len(read_prompt(body)) for body in merged.bodies}) > 1


def test_the_language_model_is_let_go(by_server, merged):
    kept = sum(weight.numel() for weight in by_server.recognizer._model.llm.parameters())
    assert kept == merged.llm.get_input_embeddings().weight.numel()


def test_the_command_writes_subtitles(demo_merged, address, merged, demo_clips, tmp_path, monkeypatch):
    arguments = ["transcribe", demo_clips[0], "--model", demo_merged, "--server", address, "--output", tmp_path]
    monkeypatch.setattr(sys, "argv", list(map(str, arguments)))
    merged.bodies.clear()
    with pytest.raises(SystemExit) as ended:
        transcribe.main()
    assert ended.value.code == 0 and len(merged.bodies) == 1
    expected = Transcriber.from_pretrained(demo_merged)(demo_clips[0], num_beams=1).text
    assert expected in (tmp_path / f"{demo_clips[0].stem}.srt").read_text()


def test_what_a_server_refuses_is_one_sentence(demo_merged, demo_clips):
    """In the words of vLLM 0.32, and of what is no vLLM."""
    off = "You must set `--enable-prompt-embeds` to input `prompt_embeds`. (parameter=prompt_embeds)"
    error = {"error": {"message": off, "type": "BadRequestError", "param": "prompt_embeds", "code": 400}}
    choice = {"index": 0, "text": "xin chào", "logprobs": None, "finish_reason": "stop"}
    for status, said, message in (
        (400, error, r"/completions: the server answers 400 \(You must set `--enable-prompt-embeds` to .*embeds\)\)$"),
        (404, {"detail": "Not\nFound"}, r"the server answers 404 \(\{\"detail\": \"Not.nFound\"\}\)$"),
        (502, "", r"the server answers 502 \(Bad Gateway\)$"),
        (200, {"choices": [choice]}, r"answers otherwise than vLLM 0.11 and newer do \(KeyError\('token_ids'\)\)"),
        (200, {"choices": []}, "answers otherwise than vLLM 0.11 and newer do"),
        (200, "<html>", "answers otherwise than vLLM 0.11 and newer do"),
    ):
        with serving(lambda path, body, s=status, x=said: (200, MODELS) if body is None else (s, x)) as url:
            transcriber = Transcriber.from_pretrained(demo_merged, server=url)
            with pytest.raises(InputError, match=message) as caught:
                transcriber(demo_clips[0], vad=False)
            assert str(caught.value).startswith(url) and "\n" not in str(caught.value)
    with pytest.raises(InputError, match="cannot be reached .*, expected a server started by vllm serve"):
        transcriber(demo_clips[0], vad=False)  # which is gone by now


def test_what_cannot_be_served_is_said_before_anything_is_loaded(
    demo_folder, demo_export, demo_merged, address, by_server, demo_clips, tmp_path
):
    def penalized(folder):
        shutil.copytree(demo_merged, folder)
        config = json.loads((folder / "config.json").read_text())
        config["decoding"]["repetition_penalty"] = 1.2
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    for folder, url, options, message in (
        (demo_merged, f"http://127.0.0.1:{free_port()}", {}, r"cannot be reached \(.*Connection refused\), expected"),
        (demo_merged, "localhost:8000", {}, "the server is 'localhost:8000', expected an address such as http://"),
        (demo_merged, "http://localhost:http", {}, r"cannot be reached \(nonnumeric port: 'http'\), expected"),
        (demo_merged, "http://[::1", {}, r"\(ValueError\('Invalid IPv6 URL'\)\)"),
        (demo_merged, "file:///etc", {}, "the server is 'file:///etc', expected an address such as http://"),
        (demo_export, address, {}, "holds no merged/, which the server must have: export it again with --merge"),
        (demo_merged, address, {"llm": "llm"}, "has a language model, expected no --llm with it"),
        (demo_merged, address, {"device": "cuda:99"}, "--device cuda:99 is not usable here"),
        (demo_folder / "run", address, {}, "is a work folder: --server takes an export"),
        (penalized(tmp_path / "penalized"), address, {}, "decodes with repetition_penalty=1.2, expected 1 for a vLLM"),
    ):
        with pytest.raises(InputError, match=message):
            Transcriber.from_pretrained(folder, server=url, **options)
    with serving(lambda *_: (200, {"data": []})) as url, pytest.raises(InputError, match="answers otherwise than vLLM"):
        Transcriber.from_pretrained(demo_merged, server=url)
    with pytest.raises(InputError, match="num_beams is 5, expected 1: a vLLM server decodes without beams"):
        by_server(demo_clips[0], num_beams=5)
