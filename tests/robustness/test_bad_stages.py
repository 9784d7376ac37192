"""Bad folders, tables and files at the stages that prepare data: refused before there is any work to lose."""

import json
import os
import shutil

import deadly_work
import numpy as np
import pandas as pd
import pytest
import safetensors.numpy
from bad_input import REFUSED, SKIPPED, Bad, each, refused
from real_videos import write_video
from small_corpus import WIDTH
from small_shards import contents, options

from viavsp_jax.prepare.__main__ import main
from viavsp_jax.prepare.recordings import mouth_clips
from viavsp_jax.prepare.skipped import read_skipped

MOUTHS, BOTH, SHARDS = "prepare mouths", "prepare kmeans, shards", "prepare shards"
NOISE = np.random.default_rng(0).integers(-3000, 3000, 6400).astype(np.int16)


def written(name, content):
    """Writes a file of the folder."""

    def make(folder):
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return make


def replaced(name, old, new):
    def make(folder):
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return make


def removed(name):
    return lambda folder: (folder / name).unlink()


def cut(name):
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size // 2)


def weights(change):
    """Changes one weight of the encoder."""

    def make(folder):
        path = folder / "encoder" / "model.safetensors"
        tensors = safetensors.numpy.load(path.read_bytes())
        change(tensors, "post_extract_proj.bias")
        path.write_bytes(safetensors.numpy.save(tensors))

    return make


def centers(array, layer="2"):
    return written("kmeans", safetensors.numpy.save({"centers": array}, {"layer": layer}))


def recording(name, size=(96, 96), samples=NOISE):
    """Writes a video, of a mouth if it is 96x96."""

    def make(folder):
        pictures = np.random.default_rng(1).integers(0, 255, (10, *size, 1)).astype(np.uint8)
        write_video(folder / "x.mkv", pictures.repeat(3, -1), samples=samples)
        os.rename(
            folder / "x.mkv", os.path.join(os.fsencode(folder), name if isinstance(name, bytes) else name.encode())
        )

    return make


def refuse(entry, wrong, words, make):
    return Bad(entry, wrong, REFUSED, words, make)


def skip(wrong, words, make):
    return Bad(MOUTHS, wrong, SKIPPED, words, make)


RECORDINGS = [
    skip("recording is an empty file", "0.mkv: not a media file that can be read", written("0.mkv", b"")),
    skip("recording is text", "1.mkv: not a media file that can be read", written("1.mkv", b"<html>404</html>")),
    skip("recording without sound", "2.mkv: has no sound", recording("2.mkv", samples=None)),
    skip("recording of silence", "silence.mkv: has no sound that", recording("silence.mkv", samples=0 * NOISE)),
    skip(
        "audio continues after the video ends",
        "on.mkv: for 0.8 s there is sound as loud as speech, but no picture",
        recording("on.mkv", samples=np.tile(NOISE, 3)),
    ),
    skip("recording without a face", "3.mkv: no face is seen in it", recording("3.mkv", size=(64, 64))),
    skip("two recordings of one id", "has the same id as", recording("good.mp4")),
    skip("name with a control character", "of UTF-8 without control characters", recording("4\a.mkv")),
    skip("name that is not UTF-8", r"\xff.mkv: its path makes no id", recording(b"\xff.mkv")),
    skip("name of 250 characters", "its path makes no id", recording("6" * 240 + ".mkv")),
    skip(
        "dangling link",
        "7.mkv: no such file, but a link or the like",
        lambda folder: (folder / "7.mkv").symlink_to("nowhere"),
    ),
    skip("reader process crashes", "the process that read this recording died twice", recording("8.mkv")),
]
TABLES = [
    refuse(MOUTHS, "transcripts are not UTF-8", "not UTF-8 text", written("t.csv", b"id\n\xff")),
    refuse(
        MOUTHS, "transcripts are cut off", "not a readable .parquet or .csv file", written("t.csv", b"PAR1 not really")
    ),
    refuse(MOUTHS, "columns are missing", "columns ['split'] are missing", written("t.csv", "id,transcript\na,b\n")),
    refuse(
        MOUTHS,
        "unquoted text with a comma",
        "t.csv: line 3 has fewer or more values than there are columns (4, not 3)",
        written("t.csv", "id,transcript,split\na,b,train\nb,xin chào, các bạn,train\n"),
    ),
    refuse(
        MOUTHS,
        "texts with commas in every row",
        "line 2 has fewer or more values than there are columns (4, not 3)",
        written("t.csv", "id,transcript,split\nx,a,b,train\ny,c,d,train\n"),
    ),
    refuse(
        MOUTHS,
        "unclosed quote",
        "line 3: not a table (unexpected end of data)",
        written("t.csv", 'id,transcript,split\na,"b,train\nc,d,train\n'),
    ),
    refuse(
        MOUTHS,
        "same id in NFC and in NFD",
        "id 'á' occurs twice",
        written("t.csv", "id,transcript,split\ná,b,train\na\u0301,c,test\n"),
    ),
    refuse(MOUTHS, "unknown split", "id 'a' has split 'dev'", written("t.csv", "id,transcript,split\na,b,dev\n")),
    refuse(
        MOUTHS,
        "one id twice in the table",
        "id 'a' occurs twice",
        written("t.csv", "id,transcript,split\na,b,train\na,c,test\n"),
    ),
]
INPUTS = [
    refuse(BOTH, "manifest is missing", "train.tsv: no such file", removed("manifest/train.tsv")),
    refuse(BOTH, "transcripts are missing", "train.wrd: no such file", removed("manifest/train.wrd")),
    refuse(BOTH, "manifest is not UTF-8", "train.tsv: not UTF-8 text", written("manifest/train.tsv", b"\xff\n")),
    refuse(BOTH, "manifest without clips", "train.tsv: lists no clip", written("manifest/train.tsv", "corpus\n")),
    refuse(
        BOTH,
        "a line of the manifest is cut off",
        "line 2 is 'train-000-vi",
        replaced("manifest/train.tsv", "\t7\t", "\t"),
    ),
    refuse(
        BOTH,
        "frame count of 5,000 digits",
        "expected <id>-<src>-<dst> video audio frames samples",
        replaced("manifest/train.tsv", "\t7\t", f"\t{'9' * 5000}\t"),
    ),
    refuse(
        BOTH, "one id twice in the manifest", "occurs twice", replaced("manifest/train.tsv", "train-001-", "train-000-")
    ),
    refuse(BOTH, "fewer transcripts than clips", "has 1 lines, expected 7", written("manifest/train.wrd", "a\n")),
    refuse(BOTH, "encoder without config.json", "config.json: no such file", removed("encoder/config.json")),
    refuse(BOTH, "encoder's config.json is cut off", "config.json: not a JSON file", cut("encoder/config.json")),
    refuse(
        BOTH,
        "encoder's config.json has other fields",
        "not the config of an AV-HuBERT encoder",
        replaced("encoder/config.json", "embed_dim", "width"),
    ),
    refuse(BOTH, "encoder without weights", "model.safetensors: no such file", removed("encoder/model.safetensors")),
    refuse(BOTH, "encoder's weights are cut off", "not a readable safetensors file", cut("encoder/model.safetensors")),
    refuse(BOTH, "a weight of the encoder is missing", "missing post_extract_proj.bias", weights(dict.pop)),
    refuse(
        BOTH,
        "a weight of the encoder is not finite",
        "post_extract_proj.bias is not finite",
        weights(lambda tensors, name: tensors[name].fill(np.nan)),
    ),
    refuse(SHARDS, "centres are missing", "kmeans: no such file", removed("kmeans")),
    refuse(SHARDS, "centres are another file", "not a file of the kmeans stage", written("kmeans", b"not centres")),
    refuse(SHARDS, "centres without their layer", "not a file of the kmeans stage", centers(np.ones((3, 9)), "two")),
    refuse(
        SHARDS,
        "centres of another width",
        f"width {WIDTH + 1}, expected a layer up to 3 and width {WIDTH}",
        centers(np.ones((3, WIDTH + 1), np.float32)),
    ),
    refuse(
        SHARDS,
        "centres of a layer that the encoder lacks",
        "has centres of layer 9",
        centers(np.ones((3, WIDTH), np.float32), "9"),
    ),
    refuse(
        SHARDS,
        "centres are not finite",
        "expected finite float32[K, D]",
        centers(np.full((3, WIDTH), np.nan, np.float32)),
    ),
    refuse(SHARDS, "centres of another dtype", "centers are float64", centers(np.ones((3, WIDTH)))),
]
DONE = "out/av_clean/"
RECORD = f"{DONE}provenance.json"
OUTPUTS = [
    refuse(
        SHARDS,
        "a shard is cut off",
        "a shard that cannot be read",
        cut(f"{DONE}viavsp-train.array_record-00000-of-00001"),
    ),
    refuse(
        SHARDS,
        "a shard is an empty file",
        "a shard that cannot be read",
        written(f"{DONE}viavsp-train.array_record-00000-of-00001", b""),
    ),
    refuse(
        SHARDS,
        "provenance.json is cut off",
        "provenance.json: not what the shards stage wrote",
        cut(RECORD),
    ),
    refuse(
        SHARDS,
        "provenance.json holds other things",
        "provenance.json: not what the shards stage wrote",
        written(RECORD, '{"splits": 3}'),
    ),
    refuse(
        SHARDS,
        "notes of a shard are damaged",
        "the notes of a shard are damaged",
        written(f"{DONE}notes/train-00000-of-00001.jsonl", "{\n"),
    ),
    refuse(
        SHARDS,
        "notes of a shard are missing",
        "train-00000-of-00001.jsonl: no such file",
        removed(f"{DONE}notes/train-00000-of-00001.jsonl"),
    ),
]


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """What is made of one good recording alone, and among one of each bad kind."""
    folder = tmp_path_factory.mktemp("recordings")
    (folder / "videos").mkdir()
    recording("good.mkv")(folder / "videos")
    command = ["mouths", "--videos", str(folder / "videos"), "--workers", "1", "--output"]
    main([*command, str(folder / "clean")])
    for case in RECORDINGS:
        case.make(folder / "videos")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mouth_clips, "ClipMaker", deadly_work.DeadlyClipMaker)
        patch.setenv(deadly_work.DEADLY, "8")
        main([*command, str(folder / "mixed")])
    return folder


@each(RECORDINGS, SKIPPED)
def test_a_bad_recording_is_skipped_and_listed(recordings, case):
    found = [line for line in read_skipped(recordings / "mixed") if case.words in line["reason"]]
    assert len(found) >= 1 and all(line.keys() == {"id", "reason"} for line in found)


def test_a_good_recording_gives_what_it_does_without_the_bad(recordings):
    clean, mixed = (contents(recordings / name) for name in ("clean", "mixed"))
    assert len(read_skipped(recordings / "mixed")) == len(RECORDINGS)
    for name, content in clean.items():
        if not name.startswith("notes/"):
            assert mixed[name] == content, name


@each(TABLES)
def test_a_bad_table_of_transcripts_is_refused(tmp_path, capsys, case):
    (tmp_path / "videos").mkdir()
    case.make(tmp_path)
    command = ["mouths", "--videos", str(tmp_path / "videos"), "--output", str(tmp_path / "out"), "--transcripts"]
    message = refused(lambda: main([*command, str(tmp_path / "t.csv")]), capsys)
    assert case.words in message and "t.csv: " in message and not (tmp_path / "out").exists()


def test_what_is_said_may_look_like_a_missing_value(tmp_path):
    (tmp_path / "videos").mkdir()
    recording("a.mkv")(tmp_path / "videos")
    written("t.csv", "id,transcript,split\na,nan,train\n")(tmp_path)
    command = ["mouths", "--videos", str(tmp_path / "videos"), "--output", str(tmp_path / "out"), "--workers", "0"]
    main([*command, "--transcripts", str(tmp_path / "t.csv")])
    assert pd.read_parquet(tmp_path / "out" / "metadata.parquet")["transcript"].tolist() == ["nan"]


@pytest.fixture
def inputs(prepared, tmp_path):
    """Manifest, encoder and centres of one's own."""
    for name in ("manifest", "encoder"):
        shutil.copytree(prepared / name, tmp_path / name)
    shutil.copy(prepared / "kmeans", tmp_path)
    return tmp_path


def commands(folder, case):
    shards = options(folder, folder / "out", "--split", "train")
    if case.entry == SHARDS:
        return [shards]
    at = shards.index("--kmeans")
    return [shards, ["kmeans", *shards[1:at], *shards[at + 2 :], "--layer", "2", "--num_clusters", "3"]]


@each(INPUTS)
def test_a_bad_input_of_the_encoder_s_stages_is_refused(inputs, capsys, case):
    case.make(inputs)
    for command in commands(inputs, case):
        message = refused(lambda: main(command), capsys)  # noqa: B023
        assert case.words in message and str(inputs) in message and not (inputs / "out").exists()


@each(OUTPUTS)
def test_a_damaged_output_is_refused(inputs, capsys, case):
    (command,) = commands(inputs, case)
    main(command)
    case.make(inputs)
    before = contents(inputs)
    assert case.words in refused(lambda: main(command), capsys)
    assert contents(inputs) == before


def test_a_note_that_is_damaged_is_made_again(recordings, tmp_path):
    shutil.copytree(recordings / "clean", tmp_path / "out")
    before = contents(tmp_path / "out")
    (note,) = (tmp_path / "out" / "notes").rglob("*.json")
    note.write_text('{"id": "good"')
    (tmp_path / "videos").mkdir()
    recording("good.mkv")(tmp_path / "videos")
    main(["mouths", "--videos", str(tmp_path / "videos"), "--output", str(tmp_path / "out"), "--workers", "0"])
    after = contents(tmp_path / "out")
    assert json.loads(note.read_text())["frames"] == 10 and after.keys() == before.keys()
    assert all(after[name] == before[name] for name in before if name.startswith(("visual", "audio")))
