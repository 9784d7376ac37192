"""Files to text: the words of the shards, by JAX and by PyTorch; windows, formats, pictures, the command."""

import csv
import json
import pathlib
import re
import shutil
import subprocess
import sys

import av
import cv2
import numpy as np
import pytest
from real_videos import SPEECH, write_wav

from viavsp_jax import transcribe
from viavsp_jax.app import captions
from viavsp_jax.app.recognizer import Hypothesis
from viavsp_jax.app.transcriber import Clip, Segment, Transcriber, Transcript, _without_repeated
from viavsp_jax.data import media
from viavsp_jax.prepare.manifest import read_manifest
from viavsp_jax.prepare.recordings.recording import read_recording
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
    with (demo_folder / "run" / "hypotheses" / f"{modality}_clean.tsv").open(encoding="utf-8") as file:
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


def test_the_command_on_a_real_video(demo_export, demo_clips, tmp_path):
    """A speaker, a silent face behind, sound of 24 kHz: times, subtitles on the picture, and the mouths as a sheet."""
    arguments = [SPEECH, demo_clips[0], tmp_path / "gone.mp4", "--model", demo_export, "--output", tmp_path / "out"]
    command = [sys.executable, "-m", "viavsp_jax.transcribe", *map(str, arguments), "--format", *captions.FORMATS]
    missing = subprocess.run(command, capture_output=True, text=True)
    assert missing.returncode == 2 and "gone.mp4: no such file" in missing.stderr and "Traceback" not in missing.stderr
    assert not (tmp_path / "out").exists()
    command.remove(str(tmp_path / "gone.mp4"))
    done = subprocess.run([*command, "--video", "--mouths"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "real-time factor" in done.stdout
    whole = json.loads((tmp_path / "out" / "obama_speech.json").read_text())
    assert whole["seconds"] == pytest.approx(8.72, abs=0.1) and whole["modality"] == "av"
    assert "speech: " in done.stdout and set(whole["seconds_used"]) == {"av"}
    assert 7 < sum(whole["seconds_used"].values()) < whole["seconds"]
    srt = (tmp_path / "out" / "obama_speech.srt").read_text()
    assert re.match(r"1\n00:00:00,\d{3} --> 00:00:0\d,\d{3}\n\w+", srt)
    with av.open(str(tmp_path / "out" / "obama_speech.subtitled.mp4")) as copy:
        assert [stream.type for stream in copy.streams] == ["video", "audio"]
        assert (copy.streams.video[0].average_rate, copy.streams.audio[0].rate) == (12, 24_000)
        frames = [frame.to_ndarray(format="rgb24").astype(int) for frame in copy.decode(video=0)]
    assert len(frames) == round(12 * whole["seconds"])
    green = [(frame[..., 1] - frame[..., [0, 2]].max(-1) > 60).sum() for frame in frames]
    assert np.mean(np.array(green) > 40) > 0.95  # the box is there
    sheet = cv2.imread(str(tmp_path / "out" / "obama_speech.mouths.png"), cv2.IMREAD_GRAYSCALE)
    assert sheet.shape == (3 * 98, 8 * 98) and sheet.std() > 10


def test_options_that_do_not_fit(demo_export, demo_clips, tmp_path, monkeypatch, capsys):
    other = tmp_path / demo_clips[0].name  # as another one, in another folder
    other.write_bytes(demo_clips[0].read_bytes())
    for arguments, message in (
        ([demo_clips[0], other, "--output", tmp_path], "2 of the files would be written to"),
        ([demo_clips[0], "--batch_size", "0"], "--batch_size is 0"),
        (
            [demo_clips[0], "--num_beams", "5000"],
            "--num_beams is 5000, expected a whole number at least 1 and at most 200",
        ),
        ([demo_clips[0], "--vad_threshold", "1"], "--vad_threshold is 1, expected a number at least 0.01"),
        ([demo_clips[0], "--num_beams", "-1"], "--num_beams is -1"),
        ([demo_clips[0], "--noise_snr", "nan"], "--noise_snr is nan, expected a number at least -100 and at most 100"),
        ([demo_clips[0], "--noise-snr=-inf"], "--noise_snr is -inf"),
        ([demo_clips[0], "--source", "xx"], "argument --source: invalid choice: 'xx'"),
        ([demo_clips[0], "--step", "foo"], "--step is foo, expected best, latest or the number of an update"),
        ([demo_clips[0], "--device", "tpu"], "--device tpu is not usable here"),
        ([demo_clips[0], "--output", other], f"--output {other}: a file is there, expected a folder"),
        ([demo_clips[0], "--output", other / "new"], f"--output {other / 'new'}: cannot be written (Not a directory)"),
        ([demo_clips[0], "--mean_face", other], "not a readable .npy file"),
        ([demo_clips[0], "--step", "3"], "is an export: it holds its encoder"),
    ):
        monkeypatch.setattr("sys.argv", ["transcribe", *map(str, arguments), "--model", str(demo_export)])
        with pytest.raises(SystemExit) as status:
            transcribe.main()
        error = capsys.readouterr().err
        assert status.value.code == 2 and message in error and "Traceback" not in error


@pytest.mark.parametrize("command, package", [("transcribe", "av"), ("app", "gradio")])
def test_what_is_not_installed_is_said(command, package, demo_export, demo_clips):
    absent = f"import sys, runpy; sys.modules[{package!r}] = None; sys.argv = ['x', *sys.argv[1:]]; "
    script = f"{absent}runpy.run_module('viavsp_jax.{command}', run_name='__main__')"
    files = [demo_clips[0]] if command == "transcribe" else []
    arguments = [*files, "--model", demo_export]
    done = subprocess.run([sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"error: the package {package} is not installed: pip install" in done.stderr


def transcript_of(*texts):
    segments = []
    for start, text in enumerate(texts):
        hypotheses = Hypothesis(text, -0.25), Hypothesis("khác", -1.0)
        frames = 10 * start, 10 * start + 10
        segments.append(Segment(*frames, hypotheses, np.int32([4, 6]), "audio"))
    return Transcript(tuple(segments), "audio", 10 * len(texts), None, None, None, None)


def test_formats():
    transcript = transcript_of("xin chào", "", "a < b & c --> d")
    assert captions.render(transcript, "txt") == "xin chào\na < b & c --> d\n"
    assert captions.render(transcript, "srt") == (
        "1\n00:00:00,000 --> 00:00:00,400\nxin chào\n\n2\n00:00:00,800 --> 00:00:01,200\na < b & c --> d\n"
    )
    vtt = captions.render(transcript, "vtt")
    assert vtt.startswith("WEBVTT\n\n00:00:00.000 --> 00:00:00.400\nxin chào\n\n")
    assert vtt.endswith("\n00:00:00.800 --> 00:00:01.200\na &lt; b &amp; c --&gt; d\n")
    whole = json.loads(captions.render(transcript, "json"))
    assert whole["text"] == "xin chào a < b & c --> d" and whole["seconds"] == 1.2
    assert whole["seconds_used"] == {"audio": 1.2} and whole["note"] is None
    assert whole["segments"][0] == {
        "start": 0.0, "end": 0.4, "text": "xin chào", "modality": "audio", "score": -0.25, "run_lengths": [4, 6],
        "alternatives": [{"text": "khác", "score": -1.0}],
    }  # fmt: skip
    assert captions.clock(3725.9996) == "01:02:06.000"


def test_a_cue_is_one_line_whatever_was_recognised():
    broken = transcript_of("một\n\nhai", "\x85\u2028", "ba\r\v\fbốn\x00\u2029năm")
    assert captions.render(broken, "txt") == "một hai\nba bốn năm\n"
    for form in ("srt", "vtt"):
        cues = captions.render(broken, form).removeprefix("WEBVTT\n\n").rstrip("\n").split("\n\n")
        assert [cue.splitlines()[-1] for cue in cues] == ["một hai", "ba bốn năm"]
        assert {len(cue.splitlines()) for cue in cues} == {3 if form == "srt" else 2}


def run_command(monkeypatch, capsys, *arguments):
    """Status and what is written on standard error."""
    monkeypatch.setattr("sys.argv", ["transcribe", *map(str, arguments)])
    with pytest.raises(SystemExit) as status:
        transcribe.main()
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return status.value.code, error


def test_pictures_wanted_of_sound_alone_are_a_note(demo_export, demo_clips, tmp_path, monkeypatch, capsys):
    video = shutil.copy(demo_clips[0], tmp_path / "video.mp4")
    samples = read_recording(video).samples
    sound, song = write_wav(tmp_path / "sound.wav", samples), tmp_path / "song.flac"
    with av.open(str(song), "w") as container:
        track, cover = container.add_stream("flac", rate=16_000, layout="mono"), container.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt = 48, 32, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame(48, 32, "rgb24")))
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate = 16_000
        container.mux([*track.encode(frame), *track.encode(None)])
    options = ["--model", demo_export, "--video", "--mouths"]
    status, error = run_command(monkeypatch, capsys, sound, *options)
    [note] = [line for line in error.splitlines() if "note: " in line]
    assert status == 0 and "error" not in error
    assert f"note: {sound}: it is sound only, so there is no picture to write subtitles on (--video)" in note
    assert "and no mouth to show (--mouths)" in note
    status, error = run_command(monkeypatch, capsys, song, video, *options, "--modalities", "audio")
    assert status == 0 and f"note: {song}: it is sound only, so there is no picture to write subtitles on" in error
    assert f"note: {video}: only its sound was used, so there is no mouth to show (--mouths)" in error
    made = {path.name for path in tmp_path.iterdir()} - {"video.mp4", "sound.wav", "song.flac"}
    assert made == {"sound.srt", "song.srt", "video.srt", "video.subtitled.mp4"}


def test_a_folder_is_transcribed(demo_export, demo_clips, tmp_path, monkeypatch, capsys):
    for name in ("a 10.mov", "a 2.mov", "a 2.MOV"):
        (tmp_path / name).write_bytes(demo_clips[0].read_bytes())
    (tmp_path / "b.mp4").write_text("no video")
    status, error = run_command(monkeypatch, capsys, tmp_path, "--model", demo_export, "--format", "txt")
    assert status == 2 and "b.mp4: not a media file" in error and "1 of 4 files could not be transcribed" in error
    assert {path.name for path in tmp_path.glob("*.txt")} == {"a 10.txt", "a 2.mov.txt", "a 2.MOV.txt"}
    assert len({path.read_text() for path in tmp_path.glob("*.txt")}) == 1
    status, error = run_command(monkeypatch, capsys, tmp_path / "c.mp4", "--model", "nowhere")
    message = f"{tmp_path / 'c.mp4'}: no such file, expected a video or audio file, or a folder with such files"
    assert (status, error) == (2, f"error: {message}\n")


def test_names_are_never_options_or_addresses(demo_export, demo_clips, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    content = demo_clips[0].read_bytes()
    names = ["-.mp4", "--help.mp4", "pipe:1.mp4", "tcp:127.0.0.1:1.mp4", "%d.mp4", "a\nb.mp4", "x" * 240 + ".mp4"]
    long = "x" * 250 + ".mp4"
    for name in (*names, long):
        pathlib.Path(name).write_bytes(content)
    assert run_command(monkeypatch, capsys, "--model", demo_export, "-.mp4")[0] == 2  # an option that is unknown
    options = ["--video", "--format", "txt", "--model", demo_export, "--"]
    status, error = run_command(monkeypatch, capsys, *options, *names, long)
    assert status == 2 and re.search(r"x{250}\.subtitled\.mp4: cannot be written \(File name too long\)", error)
    assert {path.name for path in tmp_path.iterdir()} == {*names, long}  # before any work
    assert run_command(monkeypatch, capsys, *options, *names)[0] == 0
    made = {path.name for path in tmp_path.iterdir()} - {*names, long}
    assert made == {f"{pathlib.Path(name).stem}{end}" for name in names for end in (".txt", ".subtitled.mp4")}
    assert all(pathlib.Path(name).read_bytes() == content for name in names)


def test_a_disk_without_room_is_one_sentence_and_leaves_nothing(
    demo_export, demo_clips, small_disk, monkeypatch, capsys
):
    disk = small_disk(2**20)
    options = ["--model", demo_export, "--output", disk.path]
    for wanted, ending in (
        (["--format", "srt"], "srt"), (["--format", "txt", "--video"], "txt"), (["--format", "txt", "--mouths"], "txt"),
    ):  # fmt: skip
        disk.fill()
        status, error = run_command(monkeypatch, capsys, demo_clips[0], *options, *wanted)
        [said] = [line for line in error.splitlines() if line.startswith("error")]
        assert status == 2 and f".{ending}: cannot be written (No space left on device)" in said
        assert [path.name for path in disk.path.iterdir()] == ["ballast"]
    disk.fill(leave=2**13)  # room for the text, none for the pictures
    status, error = run_command(monkeypatch, capsys, demo_clips[0], *options, "--format", "txt", "--video")
    assert status == 2 and "subtitled.mp4: cannot be written (No space left on device)" in error
    assert sorted(path.name for path in disk.path.iterdir()) == ["ballast", f"{demo_clips[0].stem}.txt"]
    disk.free()
    disk.read_only()
    status, error = run_command(monkeypatch, capsys, demo_clips[0], *options)
    assert status == 2 and f"--output {disk.path}: cannot be written (Read-only file system)" in error


def test_code_in_a_folder_is_not_run(demo_export, demo_clips, tmp_path):
    folder = shutil.copytree(demo_export, tmp_path / "export")
    for path in [*folder.glob("*.py"), folder / "sitecustomize.py", folder / "torch.py"]:
        path.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    assert json.loads((folder / "config.json").read_text())["auto_map"]
    assert Transcriber.from_pretrained(folder, device="cpu")(demo_clips[0]).text
    assert not (tmp_path / "ran").exists()
