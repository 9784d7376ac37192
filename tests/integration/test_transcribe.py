"""Files to text: the words of the shards, by JAX and by PyTorch; windows; what cannot be transcribed."""

import csv
import json
import shutil

import numpy as np
import pytest

from viavsp_jax.app.transcriber import Clip, Transcriber, _without_repeated
from viavsp_jax.data import media
from viavsp_jax.evaluation.report.results import last_folder
from viavsp_jax.prepare.manifest_files import read_manifest
from viavsp_jax.runtime.errors import InputError


@pytest.fixture(scope="module")
def by_jax(demo_folder):
    return Transcriber.from_pretrained(demo_folder / "run", batch_size=4)


@pytest.fixture(scope="module")
def by_torch(demo_export):
    return Transcriber.from_pretrained(demo_export)


@pytest.fixture(scope="module")
def clips(demo_folder):
    """(id, arrays) of the test clips."""
    listed = read_manifest(demo_folder / "manifest", "test")
    return [(clip.id, Clip(media.read_video(clip.video), media.read_audio(clip.audio))) for clip in listed]


def evaluated(demo_folder, modality):
    """What evaluation read from the shards: (hypothesis, score) by id."""
    with (last_folder(demo_folder / "run") / f"{modality}_clean.tsv").open(encoding="utf-8") as file:
        rows = csv.DictReader(file, delimiter="\t")
        return {row["id"]: (row["hypothesis"], float(row["score"])) for row in rows}


@pytest.mark.parametrize("modality", ["av", "audio", "video"])
def test_files_and_arrays_give_the_words_of_the_shards(by_jax, by_torch, demo_folder, demo_clips, clips, modality):
    expected = evaluated(demo_folder, modality)
    assert len({text for text, _ in expected.values()}) > 1
    for transcriber in (by_jax, by_torch):
        files = transcriber(demo_clips, modality=modality, vad=False)
        arrays = transcriber([clip for _, clip in clips], modality=modality, vad=False)
        for (name, clip), *found in zip(clips, files, arrays, strict=True):
            for transcript in found:
                (segment,) = transcript.segments
                text, score = expected[name]
                assert (segment.text, transcript.modality) == (text, modality)
                assert segment.score == pytest.approx(score, abs=1e-3)
                assert segment.run_lengths.sum() == len(clip.video) == segment.end
                assert len(segment.hypotheses) == 3 and segment.hypotheses[1].score <= segment.score


def test_another_dtype_than_the_trainings(demo_folder, demo_export, demo_clips, by_torch):
    """In bfloat16 scores are other ones, near those of float32; the encoder's features may fall into other clusters."""
    expected = by_torch(demo_clips[0]).segments[0].score
    for folder in (demo_folder / "run", demo_export):
        segment = Transcriber.from_pretrained(folder, dtype="bfloat16")(demo_clips[0]).segments[0]
        assert segment.score != expected and segment.score == pytest.approx(expected, abs=0.1)
    with pytest.raises(InputError, match="the dtype is 'bf16', expected float32 or bfloat16"):
        Transcriber.from_pretrained(demo_export, dtype="bf16")


def test_beams_and_noise_make_a_difference(by_torch, demo_clips):
    one = by_torch(demo_clips[0], num_beams=1)
    assert len(one.segments[0].hypotheses) == 1
    clean, noisy = (by_torch(demo_clips[0], noise_snr=snr) for snr in (None, -5.0))
    added = noisy.samples.astype(float) - clean.samples
    ratio = 10 * np.log10(np.square(clean.samples, dtype=float).sum() / np.square(added).sum())
    assert ratio == pytest.approx(-5, abs=0.1)
    again = by_torch(demo_clips[0], noise_snr=-5.0)
    assert np.array_equal(again.samples, noisy.samples) and again.text == noisy.text


def test_a_recording_longer_than_the_clips_is_cut(by_torch, clips):
    video, audio = (np.concatenate([getattr(clip, name) for _, clip in clips]) for name in ("video", "audio"))
    shares = []
    transcript = by_torch(Clip(video, audio), progress=lambda what, share: shares.append(share))
    firsts = [segment.first for segment in transcript.segments]
    assert len(firsts) > 2 and firsts == sorted(firsts) and shares[-1] == 1.0
    assert max(segment.end - segment.first for segment in transcript.segments) <= by_torch.recognizer.longest
    assert transcript.segments[-1].end <= len(video) == transcript.num_frames
    assert {segment.modality for segment in transcript.segments} == {"av"} == set(transcript.seconds)


def test_where_nobody_speaks_there_is_no_text(by_jax, by_torch):
    video, rng = np.full((150, 96, 96), 120, np.uint8), np.random.default_rng(0)
    for transcriber in (by_jax, by_torch):
        for samples in (np.zeros(96_000, np.int16), rng.normal(0, 900, 96_000).astype(np.int16)):
            for clip in (Clip(video, samples), Clip(audio=samples), Clip(video)):
                transcript = transcriber(clip)
                assert transcript.segments == () and transcript.text == "" and transcript.seconds == {}
    assert by_torch(Clip(audio=np.zeros(96_000, np.int16)), noise_snr=0.0, vad=False).segments == ()


def test_jax_and_the_export_read_recordings_of_many_windows_alike(by_jax, by_torch, clips):
    """Windows of each modality, cuts amid speech, pauses, and a face that is gone for a while."""
    pause = np.random.default_rng(0).normal(0, 9, 8000).astype(np.int16)
    sound = np.concatenate([x for _, clip in clips for x in (clip.audio[2000:-2000], clip.audio, pause)])
    video = np.concatenate([x for _, clip in clips for x in (clip.video, clip.video, clip.video[:3])])
    num_frames = min(len(sound) // 640, len(video))
    sound, video = sound[: 640 * num_frames], video[:num_frames].copy()
    video[num_frames // 3 : num_frames // 2] = 0
    used = set()
    for clip in (Clip(video, sound), Clip(audio=sound), Clip(video)):
        ours, theirs = (transcriber(clip) for transcriber in (by_jax, by_torch))
        assert len(ours.segments) > 3
        assert [(x.times, x.modality, x.text) for x in ours.segments] == [
            (x.times, x.modality, x.text) for x in theirs.segments
        ]
        for segment in (*ours.segments, *theirs.segments):
            assert segment.run_lengths.sum() == segment.end - segment.first
        used |= set(ours.seconds)
    assert used == {"av", "audio", "video"}


def test_a_word_that_both_windows_of_a_seam_hear_is_written_once():
    for text, before, expected in (
        ("ba bốn năm", "một hai ba", "bốn năm"), ("ba bốn", "một hai", "ba bốn"), ("ba", "hai ba", ""),
        ("", "một", ""), ("một", "", "một"), ("ba ba bốn", "hai ba", "ba bốn"),
    ):  # fmt: skip
        assert _without_repeated(text, before) == expected


def test_what_cannot_be_transcribed_is_one_sentence(by_torch, demo_folder, demo_export, demo_clips, tmp_path):
    video, silence = np.zeros((30, 96, 96), np.uint8), np.zeros(19_200, np.int16)
    (tmp_path / "text.mp4").write_text("not a video")
    for arguments, options, message in (
        (tmp_path / "text.mp4", {}, "text.mp4: not a media file"),
        (tmp_path / "gone.mp4", {}, "gone.mp4: no such file"),
        (Clip(video), {"modality": "av"}, "has no sound, which the modality av needs"),
        (Clip(audio=silence), {"modality": "video"}, "has no pictures, which the modality video needs"),
        (Clip(audio=silence / 2**15), {}, r"the audio is float64\[19200\], expected 16 kHz mono, int16"),
        (Clip(video[:, :90], silence), {}, r"is uint8\[30, 90, 96\], expected grey mouth crops"),
        (demo_clips[0], {"modality": "lips"}, "the modality is 'lips', expected one of av, audio, video"),
        (demo_clips[0], {"num_beams": 0}, "num_beams is 0"),
        (demo_clips[0], {"num_beams": 5000}, "num_beams is 5000, expected from 1 to 200"),
        (demo_clips[0], {"vad_threshold": 1.0}, "vad_threshold is 1.0, expected a number between 0 and 1"),
        (demo_clips[0], {"noise_snr": np.nan}, "noise_snr is nan, expected from -100 to 100 dB"),
        (demo_clips[0], {"languages": ("vi", "xx")}, "language 'xx' is unknown"),
    ):
        with pytest.raises(InputError, match=message):
            by_torch(arguments, **options)
    with pytest.raises(InputError, match="is no model: expected the work folder of a training, or an export"):
        Transcriber.from_pretrained(demo_folder / "corpus")
    with pytest.raises(InputError, match="holds no weights as safetensors .*no file named model.safetensors"):
        Transcriber.from_pretrained(demo_export, llm=str(demo_folder / "llm"))  # ours, not transformers'
    with pytest.raises(InputError, match="not the kmeans that the shards"):
        (tmp_path / "k").write_bytes(b"other")
        Transcriber.from_pretrained(demo_folder / "run", kmeans=str(tmp_path / "k"))


def test_code_in_a_folder_is_not_run(demo_export, demo_clips, tmp_path):
    folder = shutil.copytree(demo_export, tmp_path / "export")
    for path in [*folder.glob("*.py"), folder / "sitecustomize.py", folder / "torch.py"]:
        path.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    assert json.loads((folder / "config.json").read_text())["auto_map"]
    assert Transcriber.from_pretrained(folder, device="cpu")(demo_clips[0]).text
    assert not (tmp_path / "ran").exists()
