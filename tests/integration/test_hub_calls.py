"""What users of transformers ask of a model, asked of an export: each works, or says why not."""

import copy
import json
import pathlib
import pickle
import shutil
import wave

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi, RepoUrl
from transformers import AutoConfig, AutoModel, AutoTokenizer, BitsAndBytesConfig, pipeline

from convert.hub.modeling_viavsp import ViAVSPModel
from viavsp_jax.app.transcriber import Transcriber
from viavsp_jax.data import media
from viavsp_jax.prepare.manifest_files import read_manifest


def load(folder, **keywords):
    return AutoModel.from_pretrained(folder, trust_remote_code=True, **keywords)


@pytest.fixture(scope="module")
def waves(demo_folder):
    return [clip.audio for clip in read_manifest(demo_folder / "manifest", "test")]


def texts(model, waves):
    found = model.transcribe(audio=[media.read_audio(path) for path in waves])
    return [[one["text"] for one in hypotheses] for hypotheses in found]


def test_keywords_that_are_followed(export, tmp_path):
    assert load(export).llm.config._attn_implementation == "sdpa"
    model = load(export, attn_implementation="eager", torch_dtype=torch.bfloat16, device_map={"": "cpu"})
    assert model.llm.config._attn_implementation == model.config._attn_implementation == "eager"
    assert {weight.dtype for name, weight in model.named_parameters() if "lora" not in name} == {torch.bfloat16}
    assert load(export, dtype="float16").dtype == load(export, device_map="auto", dtype="float16").dtype
    model, info = load(export, output_loading_info=True, low_cpu_mem_usage=True, use_safetensors=True)
    assert isinstance(model.llm, torch.nn.Module) and not any(info.values())
    shutil.copytree(export, tmp_path / "all" / "inner")
    assert ViAVSPModel.from_pretrained(tmp_path / "all", subfolder="inner").config.feature_width == 6
    for how in (BitsAndBytesConfig(load_in_8bit=True), {"load_in_8bit": True, "quant_method": "bitsandbytes"}):
        model = load(export, quantization_config=how)
        assert type(model.llm.model.layers[0].mlp.up_proj).__name__ == "Linear8bitLt"
        with pytest.raises(ValueError, match="is not supported for quantized"):
            model.half()
        with pytest.raises(ValueError, match="was quantized when it was loaded"):
            model.save_pretrained(tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_by_its_name_on_the_hub(export, tmp_path, monkeypatch):
    """From a cache as huggingface_hub lays it out."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # transformers looks for an adapter anyway
    repository = tmp_path / "models--someone--viavsp"
    shutil.copytree(export, repository / "snapshots" / ("a" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "v1").write_text("a" * 40)
    where = {"revision": "v1", "cache_dir": tmp_path, "local_files_only": True, "token": False}
    assert load("someone/viavsp", **where).config.feature_width == 6
    with pytest.raises(ValueError, match="someone/other is no folder, nor can it be had from the Hugging Face hub"):
        ViAVSPModel.from_pretrained("someone/other", cache_dir=tmp_path, local_files_only=True)
    with pytest.raises(ValueError, match="/no/such is no folder"):
        ViAVSPModel.from_pretrained("/no/such")


@pytest.mark.parametrize(
    "keywords, error, message",
    [
        ({"a_typo": 1}, TypeError, "takes no keyword a_typo"),
        ({"load_in_4bit": None, "tp_plan": None}, TypeError, "takes no keyword load_in_4bit, tp_plan"),
        ({"variant": "fp16"}, ValueError, "variant='fp16' cannot be followed"),
        ({"state_dict": {}}, ValueError, "state_dict={} cannot be followed"),
        ({"use_safetensors": False}, ValueError, "use_safetensors=False cannot be followed: expected True"),
        ({"output_hidden_states": True}, ValueError, "output_hidden_states=True cannot be followed"),
        ({"dtype": "int8"}, ValueError, "the dtype is 'int8': expected float32"),
        ({"device_map": {"llm": "cpu", "projector": "cpu"}}, ValueError, "device_map places llm, projector"),
        ({"device_map": "gpu"}, ValueError, "device_map .* found gpu"),
        ({"device_map": "auto", "max_memory": {"cpu": 1000}}, ValueError, "finds no room"),
        ({"attn_implementation": "fast"}, ValueError, 'attn_implementation="fast"'),
        ({"end_token": "</x>"}, ValueError, "has no token '</x>'"),
    ],
)  # fmt: skip
def test_keywords_that_are_refused(export, keywords, error, message):
    with pytest.raises(error, match=message):
        load(export, **keywords)


def test_what_the_model_does_not_do_is_said(export):
    model = load(export)
    with pytest.raises(AttributeError, match=r"has no generate: use transcribe\(video, audio\)"):
        model.generate(torch.zeros(1, 3))
    with pytest.raises(NotImplementedError, match="is not called: use transcribe"):
        model(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="a config holds no weights"):
        AutoModel.from_config(model.config, trust_remote_code=True)
    with pytest.raises(TypeError, match="the search has no setting num_beam$"):
        model.recognize([torch.zeros(2, 6)], [torch.tensor([2])], [("vi", "vi")], num_beam=3)
    assert model.get_input_embeddings() is model.llm.get_input_embeddings()
    assert AutoTokenizer.from_pretrained(export, trust_remote_code=True)("xin")["input_ids"]


@pytest.mark.parametrize("merged", [pytest.param(False, marks=pytest.mark.full), True])
def test_a_saved_model_is_an_export(demo_folder, demo_export, demo_merged, waves, tmp_path, merged):
    source, out = demo_merged if merged else demo_export, tmp_path / "out"
    model = load(source)
    expected = texts(model, waves)
    (out / "merged").mkdir(parents=True)  # of an earlier export, which would be preferred
    (out / "projector.safetensors").write_bytes(b"")
    (out / ".git").mkdir()
    model.save_pretrained(out)
    assert (out / ".git").is_dir() and (out / "merged").exists() == merged
    names = {path.name for path in out.iterdir()} - {".git"}
    assert names == {path.name for path in demo_merged.iterdir()} - ({"adapter"} if merged else {"merged"})
    settings, before = (json.loads((folder / "config.json").read_text()) for folder in (out, demo_export))
    assert before.items() <= settings.items()
    assert texts(load(out), waves) == expected
    by_us = Transcriber.from_pretrained(out)(waves, vad=False)
    assert [transcript.text for transcript in by_us] == [hypotheses[0] for hypotheses in expected]
    model.half().save_pretrained(out)  # over itself
    assert AutoConfig.from_pretrained(out, trust_remote_code=True).dtype == torch.float16
    # Not those of `model`: half() also rounds what rotates the positions, which loading does not.
    assert texts(load(out), waves) == texts(load(source, dtype=torch.float16), waves)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert texts(other, waves) == texts(model, waves)


def test_weights_that_were_changed_are_saved(export, tmp_path):
    model = load(export, merged=False)
    with torch.no_grad():
        for weight in (model.projector.bias, model.llm.model.layers[1].self_attn.q_proj.lora_B["default"].weight):
            weight += 1
    model.save_pretrained(tmp_path / "out")
    again = load(tmp_path / "out").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())


def test_saving_where_something_else_is(export, tmp_path):
    model = load(export)
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("x")
    before = sorted(tmp_path.rglob("*"))
    for name, message in (("file", "file is a file"), ("full", "full is not empty and no earlier export")):
        with pytest.raises(ValueError, match=message):
            model.save_pretrained(tmp_path / name)
    with pytest.raises(TypeError, match="takes no keyword safe_serialization"):
        model.save_pretrained(tmp_path / "new", safe_serialization=True)
    model.save_pretrained(tmp_path / "new", is_main_process=False)
    assert sorted(tmp_path.rglob("*")) == before


def test_uploads_hold_the_whole_export_and_its_card(export, monkeypatch):
    """What huggingface_hub is given: there is no hub here."""
    sent = {}

    def create_repo(self, repo_id, **options):
        sent.update(token=self.token, repository=(repo_id, options["private"]))
        return RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload_folder(self, *, repo_id, folder_path, **options):
        folder = pathlib.Path(folder_path)
        sent.update(to=repo_id, options=options, card=(folder / "README.md").read_bytes())
        sent["files"] = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    load(export).push_to_hub("someone/viavsp", private=True, token="secret", commit_message="first")
    assert sent["repository"] == ("someone/viavsp", True) and sent["token"] == "secret"
    assert sent["to"] == "someone/viavsp" and sent["options"] == {"commit_message": "first"}
    expected = {str(path.relative_to(export)) for path in export.rglob("*") if path.is_file()}
    assert sent["files"] == {name for name in expected if not name.startswith("adapter/")}
    assert sent["card"] == (export / "README.md").read_bytes()


def test_the_pipeline_of_the_card(demo_folder, demo_export, waves, tmp_path):
    card = (demo_export / "README.md").read_text(encoding="utf-8")
    assert "pipeline_tag: automatic-speech-recognition\n" in card
    recognize = pipeline("automatic-speech-recognition", model=str(demo_export), trust_remote_code=True)
    clip = read_manifest(demo_folder / "manifest", "test")[0]
    video, audio = media.read_video(clip.video), media.read_audio(clip.audio)
    model = load(demo_export)
    heard, both = model.transcribe(audio=[audio])[0][0], model.transcribe([video], [audio])[0][0]
    for recording in (
        waves[0], open(waves[0], "rb").read(), audio, {"audio": waves[0]},
        {"raw": audio / 32768, "sampling_rate": 16000},
        {"array": (audio / 32768).astype(np.float32), "sampling_rate": 16000, "path": None},
    ):  # fmt: skip
        assert recognize(recording) == {"text": heard["text"], "score": heard["score"]}
    assert recognize({"audio": audio, "video": video})["score"] == both["score"]
    greedy = model.transcribe(audio=[audio], num_beams=1)[0][0]["score"]
    assert (
        recognize(waves[0], num_beams=1)["score"]
        == recognize(audio, generate_kwargs={"num_beams": 1})["score"]
        == greedy
    )
    assert [one["text"] for one in recognize(waves)] == [hypotheses[0] for hypotheses in texts(model, waves)]
    recognize.save_pretrained(tmp_path / "saved")
    recognize.model.config.save_pretrained(tmp_path / "config")
    assert pipeline(model=str(tmp_path / "saved"), trust_remote_code=True)(waves[0])["text"] == heard["text"]


def test_what_a_pipeline_cannot_take_is_said(demo_export, tmp_path):
    recognize = pipeline("automatic-speech-recognition", model=str(demo_export), trust_remote_code=True)
    samples, frames = np.zeros(6400, np.int16), np.zeros((10, 96, 96), np.uint8)
    with wave.open(str(tmp_path / "empty.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
    for recording, message in (
        (str(tmp_path / "gone.wav"), "gone.wav: No such file or directory, expected a file of sound"),
        (str(tmp_path / "empty.wav"), "the recording is empty"),
        ({"array": samples, "sampling_rate": 8000}, "the sampling_rate is 8000: expected 16000"),
        ({"sound": samples}, "the recording has sound: expected audio, video or both"),
        (samples.reshape(2, -1), r"the audio is int16\[2, 3200\]: expected 16 kHz mono"),
        (samples.astype(np.int64), "the audio is int64"),
        (np.full(640, np.nan), "no finite numbers"),
        ({"video": frames[:, :90]}, r"the video is uint8\[10, 90, 96\]: expected mouth crops"),
    ):
        with pytest.raises(ValueError, match=message):
            recognize(recording)
    with pytest.raises(TypeError, match="the search has no setting return_timestamps"):
        recognize(samples, return_timestamps=True)
