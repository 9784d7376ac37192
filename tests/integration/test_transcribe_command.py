"""The command transcribe: what it writes, its options, names of files, disks without room."""

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
from viavsp_jax.prepare.recordings.recording import read_recording


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
