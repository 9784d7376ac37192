"""Exports as others use them: by transformers alone, in a process that cannot import this project."""

import json
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from demo_run import DEMO_ENCODER, MODALITIES
from python_speech_features import logfbank

from convert import hub, to_hf
from convert.export_code import code_files
from convert.hub.language_model_viavsp import ExportError
from convert.hub.modeling_viavsp import ViAVSPModel
from convert.hub.search_viavsp import generation_config
from viavsp_jax.data import features, media
from viavsp_jax.evaluation.report.results import last_folder
from viavsp_jax.models.avhubert import config as avhubert_config
from viavsp_jax.prepare.features import provenance
from viavsp_jax.prepare.manifest_files import read_manifest
from viavsp_jax.runtime.errors import InputError

# What a user of the export needs not have.
ABSENT = ("viavsp_jax", "convert", "jax", "flax", "cv2", "etils", "python_speech_features", "av", "tensorflow_datasets")
ALONE = """
import pickle, sys

class Absent:
    def find_spec(self, name, *_):
        if name.split(".")[0] in {absent}:
            raise ImportError(name)

sys.meta_path.insert(0, Absent())
from transformers import AutoModel

clips = pickle.load(sys.stdin.buffer)
model = AutoModel.from_pretrained({folder!r}, trust_remote_code=True, base_model={llm!r})
found = {{}}
for modality in ("av", "audio", "video"):
    video = None if modality == "audio" else [clip["video"] for clip in clips]
    audio = None if modality == "video" else [clip["audio"] for clip in clips]
    found[modality] = [hypotheses[0]["text"] for hypotheses in model.transcribe(video, audio)]
pickle.dump(found, open(sys.argv[1], "wb"))
"""


@pytest.fixture(scope="module")
def clips(demo_folder):
    listed = read_manifest(demo_folder / "manifest", "test")
    return [{"id": c.id, "video": media.read_video(c.video), "audio": media.read_audio(c.audio)} for c in listed]


def test_transformers_alone_goes_from_media_to_text(demo_folder, demo_export, clips, tmp_path):
    base = json.loads((demo_export / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    script = ALONE.format(absent=ABSENT, folder=str(demo_export), llm=base)
    command = [sys.executable, "-c", script, str(tmp_path / "found")]
    environment = {"HF_HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, input=pickle.dumps(clips), capture_output=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr.decode()
    found = pickle.loads((tmp_path / "found").read_bytes())
    for modality in MODALITIES:
        table = (last_folder(demo_folder / "run") / f"{modality}_clean.tsv").read_text().splitlines()
        columns = table[0].split("\t")
        rows = [dict(zip(columns, line.split("\t"), strict=True)) for line in table[1:]]
        words = {row["id"]: row["hypothesis"] for row in rows}
        assert found[modality] == [words[clip["id"]] for clip in clips]


def test_scores_are_those_of_beam_search(demo_export, clips):
    """transformers' own, which keeps the logits of all steps for them."""
    model = ViAVSPModel.from_pretrained(demo_export)
    encoded = model.encode([clip["video"] for clip in clips], [clip["audio"] for clip in clips])
    x, mask = model.embed(*encoded, [("vi", "vi")] * len(clips))
    settings = generation_config(model.config.decoding, {}, model.begin_id, model.end_ids)
    settings.num_return_sequences = settings.num_beams
    settings.return_dict_in_generate = settings.output_scores = True
    theirs = model.llm.generate(inputs_embeds=x, attention_mask=mask, generation_config=settings).sequences_scores
    ours = [one["score"] for hypotheses in model.recognize(*encoded, [("vi", "vi")] * len(clips)) for one in hypotheses]
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_beams_that_are_drawn_are_all_told(demo_export, clips):
    model = ViAVSPModel.from_pretrained(demo_export)
    torch.manual_seed(0)
    for found in model.transcribe([clip["video"] for clip in clips], do_sample=True, num_beams=3, top_k=20):
        scores = [one["score"] for one in found]
        assert len(scores) == 3 and scores == sorted(scores, reverse=True)


def test_code_of_an_export_is_that_of_the_project(demo_export):
    carried = {path.name: path.read_bytes() for path in demo_export.glob("*.py")}
    assert carried == code_files()
    assert carried.keys() == {path.name for path in pathlib.Path(hub.__file__).parent.glob("*.py")} - {"__init__.py"}


def test_the_card_says_how_to_load_it_and_how_well_it_did(demo_folder, demo_export):
    card, report = (demo_export / "README.md").read_text(), json.loads((demo_folder / "run/report.json").read_text())
    for name in ("av_clean", "audio_clean", "video_clean"):
        row = report[name]
        assert f"| {name} | {row['clips']} | {100 * row['wer']:.2f} | {100 * row['cer']:.2f} |" in card
    assert card.startswith("---\nlanguage: vi\n") and "trust_remote_code=True, base_model=" in card
    assert "model.transcribe(video=[video], audio=[audio])" in card and str(demo_folder) not in card


def test_what_an_export_lacks_is_said(demo_folder, tmp_path, clips, capsys, monkeypatch):
    """Where the encoder is not where it was, features still decode."""
    shards = demo_folder / "shards" / "av_clean"
    assert provenance.encoder_and_centers(shards) == (DEMO_ENCODER, demo_folder / "kmeans.safetensors")
    with pytest.raises(InputError, match="gone: no such file, expected what the shards were made with: give --kmeans"):
        to_hf.export(demo_folder / "run", str(tmp_path / "no"), kmeans=tmp_path / "gone")
    with pytest.raises(InputError, match="is not the encoder that the shards in .* were made with: give --encoder"):
        other = tmp_path / "other"
        other.mkdir()
        for name in provenance.ENCODER_FILES:
            (other / name).write_bytes((DEMO_ENCODER / name).read_bytes()[:-1] + b" ")
        provenance.encoder_and_centers(shards, other)
    monkeypatch.setattr(provenance, "FILE", "none.json")
    to_hf.export(demo_folder / "run", str(tmp_path / "hf"))
    assert "note: the export will not take media" in capsys.readouterr().err
    assert not (tmp_path / "hf" / "encoder").exists()
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "model.recognize([features], [counts]" in card and "pipeline_tag" not in card
    model = ViAVSPModel.from_pretrained(tmp_path / "hf")
    with pytest.raises(ExportError, match="was exported without encoder and clusters"):
        model.transcribe([clips[0]["video"]])
    with pytest.raises(ExportError, match="config.json does not exist: expected an export"):
        ViAVSPModel.from_pretrained(tmp_path)


def test_filterbank_equals_python_speech_features():
    rng = np.random.default_rng(0)
    for size in (1, 2, 399, 400, 401, 560, 561, 47_999, 48_000, *rng.integers(1, 9000, 20)):
        samples = rng.integers(-32768, 32767, size).astype(np.int16)
        expected = logfbank(samples, samplerate=16_000, nfilt=26).astype(np.float32)
        np.testing.assert_array_equal(features.filterbank(samples), expected)
    silence = np.zeros(5000, np.int16)
    np.testing.assert_array_equal(features.filterbank(silence), logfbank(silence, nfilt=26).astype(np.float32))
    assert (features.VIDEO_MEAN, features.VIDEO_STD) == (avhubert_config.VIDEO_MEAN, avhubert_config.VIDEO_STD)
