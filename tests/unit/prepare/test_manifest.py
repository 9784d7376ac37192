import argparse
import collections
import json
import unicodedata

import pandas as pd
import pytest
from small_corpus import write_corpus

from viavsp_jax.prepare.__main__ import main
from viavsp_jax.prepare.manifest import run
from viavsp_jax.prepare.manifest_files import Clip, read_manifest
from viavsp_jax.prepare.skipped import read_skipped
from viavsp_jax.runtime.errors import InputError


def manifest(corpus, output, *options):
    main(["manifest", "--data", str(corpus), "--output", str(output), *options])


def refused(capsys, corpus, output, *options):
    """The message of a run that ends with status 2."""
    with pytest.raises(SystemExit) as caught:
        manifest(corpus, output, *options)
    assert caught.value.code == 2
    return capsys.readouterr().err


@pytest.fixture
def corpus(tmp_path):
    write_corpus(tmp_path / "corpus", {"train": [3, 4, 5, 6], "valid": [3], "test": [4, 3]})
    return tmp_path / "corpus"


def edit(corpus, **columns):
    """Changes values of metadata.parquet: edit(corpus, transcript={2: "a"})."""
    metadata = pd.read_parquet(corpus / "metadata.parquet").astype(object)
    for column, values in columns.items():
        for row, value in values.items():
            metadata.loc[row, column] = value
    metadata.to_parquet(corpus / "metadata.parquet")


def test_the_files_are_as_described(corpus, tmp_path):
    """Spelled out by hand from the description of the format."""
    manifest(corpus, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"{split}.{kind}" for split in ("test", "train", "valid") for kind in ("tsv", "wrd")
    ]
    assert (tmp_path / "out/test.tsv").read_bytes().decode() == (
        f"{corpus}\n"
        "test-000-vi-vi\tvisual/00000/test-000.mp4\taudio/00000/test-000.wav\t4\t2560\n"
        "test-001-vi-vi\tvisual/00001/test-001.mp4\taudio/00001/test-001.wav\t3\t1920\n"
    )
    assert (tmp_path / "out/test.wrd").read_bytes().decode() == "câu số 0\ncâu số 1\n"
    clips = read_manifest(tmp_path / "out", "test")
    folder = str(corpus)
    assert clips[1] == Clip(
        "test-001",
        "vi",
        "vi",
        f"{folder}/visual/00001/test-001.mp4",
        f"{folder}/audio/00001/test-001.wav",
        3,
        1920,
        "câu số 1",
    )


def test_languages_and_splits_can_be_chosen(corpus, tmp_path, capsys):
    options = ("--split", "valid", "--source_language", "en", "--target_language", "fr")
    manifest(corpus, tmp_path / "out", *options)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["valid.tsv", "valid.wrd"]
    (clip,) = read_manifest(tmp_path / "out", "valid")
    assert (clip.id, clip.source_language, clip.target_language) == ("valid-000", "en", "fr")
    assert "no clip of split 'later', but of ['train', 'valid', 'test']" in refused(
        capsys, corpus, tmp_path / "out", "--split", "later"
    )
    assert "'zh-CN'" in refused(capsys, corpus, tmp_path / "out", "--source_language", "zh-CN")


def test_unusable_clips_are_skipped_counted_and_listed(tmp_path, caplog):
    corpus = tmp_path / "corpus"
    write_corpus(corpus, {"train": [4] * 11})
    (corpus / "visual/00001/train-001.mp4").unlink()
    (corpus / "audio/00000/train-002.wav").unlink()
    edit(
        corpus,
        video_num_frames={3: 501, 4: 0, 10: 500},
        audio_num_frames={10: 320_000},
        transcript={5: " \t", 6: None, 9: " một\thai\nba  bốn "},
        fps={7: 30.0},
        sampling_rate={8: 44_100},
    )
    caplog.set_level("INFO")
    manifest(corpus, tmp_path / "out")
    assert [clip.id for clip in read_manifest(tmp_path / "out", "train")] == [
        "train-000",
        "train-009",
        "train-010",
    ]
    assert (tmp_path / "out/train.wrd").read_text().splitlines()[1] == "một hai ba bốn"
    lines = read_skipped(tmp_path / "out")
    assert {line["split"] for line in lines} == {"train"}
    assert {line["id"]: line["reason"] for line in lines} == {
        "train-001": f"missing file: {corpus}/visual/00001/train-001.mp4",
        "train-002": f"missing file: {corpus}/audio/00000/train-002.wav",
        "train-003": "too long: 501 frames, at most 500",
        "train-004": "no content: 0 frames, 2560 samples",
        "train-005": "no transcript: ' \\t'",
        "train-006": "no transcript: nan",
        "train-007": "wrong frame rate: 30.0, expected 25",
        "train-008": "wrong sampling rate: 44100, expected 16000",
    }
    assert "train: 3 clips listed, 8 skipped {'missing file': 2," in caplog.text

    (corpus / "visual/00001/train-001.mp4").touch()
    (corpus / "audio/00000/train-002.wav").touch()
    good = {row: value for row in range(11) for value in [4]}
    edit(corpus, video_num_frames=good, audio_num_frames=dict.fromkeys(good, 2560), transcript=dict.fromkeys(good, "a"))
    edit(corpus, fps=dict.fromkeys(good, 25.0), sampling_rate=dict.fromkeys(good, 16_000))
    manifest(corpus, tmp_path / "out")
    assert not (tmp_path / "out/skipped.jsonl").exists(), "a stale list is removed"


def test_frac_samples_within_each_channel(tmp_path, caplog):
    corpus = tmp_path / "corpus"
    metadata = write_corpus(corpus, {"train": [3]})
    sizes = {"a": 40, "b": 20, "c": 10, "d": 2}
    rows, mapping = [], []
    for number, channel in enumerate(sorted("".join(name * size for name, size in sizes.items()) * 1)):
        rows.append(metadata.iloc[0].to_dict() | {"id": f"{number * 37 % 72:03d}"})
        mapping.append({"id": rows[-1]["id"], "channel": channel})
        for kind, suffix in (("visual", "mp4"), ("audio", "wav")):
            (corpus / f"{kind}/00000/{rows[-1]['id']}.{suffix}").touch()
    pd.DataFrame(rows).to_parquet(corpus / "metadata.parquet")
    (corpus / "mapping.json").write_text(json.dumps(mapping))
    channel = {entry["id"]: entry["channel"] for entry in mapping}

    def chosen(name, *options):
        manifest(corpus, tmp_path / name, "--frac", "0.5", *options)
        return [clip.id for clip in read_manifest(tmp_path / name, "train")]

    first = chosen("first")
    assert collections.Counter(channel[id] for id in first) == {"a": 20, "b": 10, "c": 5, "d": 1}
    order = [row["id"] for row in rows]
    assert first == sorted(first, key=order.index), "the order of metadata.parquet is kept"
    assert chosen("again") == first
    assert chosen("other", "--seed", "1") != first

    assert "without regard" not in caplog.text
    (corpus / "mapping.json").unlink()
    assert len(chosen("unstratified")) == 36
    assert "no channel, speaker or recording is known, so clips are sampled without regard to it" in caplog.text


def test_options_that_a_caller_does_not_know(corpus, tmp_path):
    known = {"split": None, "frac": 1.0, "seed": 0, "source_language": "vi", "target_language": "vi"}
    run(argparse.Namespace(data=str(corpus), output=str(tmp_path / "known"), **known))
    manifest(corpus, tmp_path / "all")
    for path in sorted((tmp_path / "all").glob("*.tsv")):
        assert (tmp_path / "known" / path.name).read_bytes() == path.read_bytes()


def test_frac_takes_small_channels_and_unknown_ones_together(tmp_path, caplog):
    """A tenth of three clips is none: of many such channels none would be left."""
    corpus = tmp_path / "corpus"
    metadata = write_corpus(corpus, {"train": [3]})
    rows = [metadata.iloc[0].to_dict() | {"id": f"{number:03d}"} for number in range(60)]
    for row in rows:
        for kind, suffix in (("visual", "mp4"), ("audio", "wav")):
            (corpus / f"{kind}/00000/{row['id']}.{suffix}").touch()
    pd.DataFrame(rows).to_parquet(corpus / "metadata.parquet")
    channels = ["large"] * 20 + [f"small{number // 3}" for number in range(30)]  # and none of the last 10
    (corpus / "mapping.json").write_text(
        json.dumps([{"id": row["id"], "channel": channel} for row, channel in zip(rows, channels, strict=False)])
    )
    manifest(corpus, tmp_path / "out", "--frac", "0.1")
    listed = [int(clip.id) for clip in read_manifest(tmp_path / "out", "train")]
    assert len(listed) == 6 and sum(number < 20 for number in listed) == 2
    assert "of 10 clips is known, first of '050'; they are sampled as one" in caplog.text


def test_bad_tables_are_named(corpus, tmp_path, capsys):
    out = tmp_path / "out"
    assert "--frac is 1.5" in refused(capsys, corpus, out, "--frac", "1.5")
    assert "nowhere: no such folder or file, expected a corpus" in refused(capsys, tmp_path / "nowhere", out)
    (corpus / "mapping.json").write_text('[{"id": "train-000", "channel": "a"}]')
    (corpus / "mapping.json").write_text('[{"id": "train-000"}]')
    assert "expected id and channel" in refused(capsys, corpus, out, "--frac", "0.5")
    (corpus / "mapping.json").write_text("[")
    assert "mapping.json: not a JSON table" in refused(capsys, corpus, out, "--frac", "0.5")
    edit(corpus, id={1: "train-000"})
    assert "id 'train-000' occurs twice in split 'train'" in refused(capsys, corpus, out)
    pd.read_parquet(corpus / "metadata.parquet").drop(columns=["fps", "split"]).to_parquet(corpus / "metadata.parquet")
    assert "columns ['fps', 'split'] are missing" in refused(capsys, corpus, out)
    (corpus / "metadata.parquet").write_bytes(b"PAR1 not really")
    assert "metadata.parquet: not a parquet file" in refused(capsys, corpus, out)
    assert not out.exists()


def test_a_corpus_without_a_usable_clip_is_refused(corpus, tmp_path, capsys):
    (corpus / "visual/00000/valid-000.mp4").unlink()
    message = refused(capsys, corpus, tmp_path / "out", "--split", "valid")
    assert "no clip of split 'valid' is usable" in message and "visual/00000/valid-000.mp4" in message


@pytest.mark.parametrize(
    ("line", "transcript", "words"),
    [
        ("a-vi-vi\tv.mp4\ta.wav\t3", "x", "line 2 is 'a-vi-vi"),
        ("a-vi\tv.mp4\ta.wav\t3\t1920", "x", "expected <id>-<src>-<dst>"),
        ("a-vi-vi\tv.mp4\ta.wav\tthree\t1920", "x", "line 2 is"),
        ("a-vi-vi\tv.mp4\ta.wav\t501\t1920", "x", "id 'a' has 501 frames, expected 1 to 500"),
        ("a-vi-vi\tv.mp4\ta.wav\t0\t1920", "x", "id 'a' has 0 frames"),
        ("a-vi-vi\tv.mp4\ta.wav\t3\t1920", " ", "id 'a' has an empty transcript"),
        (
            "a-vi-vi\tv.mp4\ta.wav\t3\t1920\na-vi-vi\tv.mp4\ta.wav\t3\t1920",
            "x\ny",
            "line 3: id 'a' occurs twice",
        ),
        ("a-vi-vi\tv.mp4\ta.wav\t3\t1920", "x\ny", "train.wrd: has 2 lines, expected 1"),
    ],
)
def test_a_manifest_that_was_tampered_with_is_refused(tmp_path, line, transcript, words):
    (tmp_path / "train.tsv").write_text(f".\n{line}\n")
    (tmp_path / "train.wrd").write_text(f"{transcript}\n")
    with pytest.raises(InputError) as caught:
        read_manifest(tmp_path, "train")
    assert words in str(caught.value)


def test_a_manifest_of_the_reference_is_read(tmp_path):
    """Ids with hyphens, a relative root, and what Python's splitlines would take for a line end."""
    (tmp_path / "test.tsv").write_text(".\nx-1-en-vi\tv/1.mp4\ta/1.wav\t37\t22380\n")
    (tmp_path / "test.wrd").write_text("hôm nay\u2028trời đẹp\n")
    (clip,) = read_manifest(tmp_path, "test")
    assert (clip.id, clip.source_language, clip.video) == ("x-1", "en", "./v/1.mp4")
    assert clip.transcript == "hôm nay\u2028trời đẹp"
    with pytest.raises(InputError, match="train.tsv: no such file"):
        read_manifest(tmp_path, "train")


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
@pytest.mark.parametrize("in_table", ["NFC", "NFD"])
@pytest.mark.parametrize("in_mapping", ["NFC", "NFD"])
def test_unicode_forms_are_equal(tmp_path, on_disk, in_table, in_mapping):
    """Of names of files and folders, of the table and of the channels; ids are in NFC, paths as they are."""
    corpus, plain = tmp_path / "corpus", write_corpus(tmp_path / "corpus", {"train": [4, 5, 6]})

    def text(form, value):
        return unicodedata.normalize(form, value.replace("train", "tiếng Việt").replace("0000", "thư mục 0000"))

    paths = [path for path in corpus.rglob("*/*") if path.parent != corpus]
    for path in sorted(paths, key=lambda path: -len(path.parts)):
        path.rename(path.with_name(text(on_disk, path.name)))
    table = plain.assign(**{name: [text(in_table, x) for x in plain[name]] for name in ("id", "shard")})
    table.to_parquet(corpus / "metadata.parquet")
    mapping = [{"id": text(in_mapping, x), "channel": "a"} for x in plain["id"]]
    (corpus / "mapping.json").write_text(json.dumps(mapping))
    manifest(corpus, tmp_path / "out", "--frac", "0.99")
    clips = read_manifest(tmp_path / "out", "train")
    assert [clip.id for clip in clips] == [text("NFC", x) for x in plain["id"]]
    for clip, id, shard in zip(clips, plain["id"], plain["shard"], strict=True):
        assert clip.video == str(corpus / text(on_disk, f"visual/{shard}/{id}.mp4"))
        assert clip.audio == str(corpus / text(on_disk, f"audio/{shard}/{id}.wav"))
    # A manifest of another form, as older versions wrote it, or of a corpus that was copied since.
    for form in ("NFC", "NFD"):
        lines = (tmp_path / "out/train.tsv").read_text()
        (tmp_path / "out/train.tsv").write_text(unicodedata.normalize(form, lines))
        assert read_manifest(tmp_path / "out", "train") == clips


def test_ids_that_differ_in_their_form_only_are_the_same(corpus, tmp_path, capsys):
    edit(corpus, id={0: "á", 1: "a\u0301"})
    assert "id 'á' occurs twice in split 'train'" in refused(capsys, corpus, tmp_path / "out")
    (tmp_path / "train.tsv").write_text("/\ná-vi-vi\tv\ta\t3\t1920\na\u0301-vi-vi\tv\ta\t3\t1920\n")
    (tmp_path / "train.wrd").write_text("x\ny\n")
    with pytest.raises(InputError, match="train.tsv: line 3: id 'á' occurs twice"):
        read_manifest(tmp_path, "train")


@pytest.mark.parametrize("column", ["id", "shard"])
@pytest.mark.parametrize("dtype", ["Int64", "float64", "Float64", "object"])
def test_a_gap_among_whole_numbers_costs_one_clip(tmp_path, column, dtype):
    metadata = write_corpus(tmp_path, {"train": [4, 5, 6]})
    for kind, suffix in (("visual", "mp4"), ("audio", "wav")):
        (tmp_path / kind / "7").mkdir()
        for number in (1, 2):
            (tmp_path / f"{kind}/7/{number}.{suffix}").touch()
    numbers = {"id": [1, 2, 3], "shard": [7, 7, 7]}
    numbers[column] = pd.array([*numbers[column][:2], None], dtype)
    metadata.assign(**numbers).to_parquet(tmp_path / "metadata.parquet")
    manifest(tmp_path, tmp_path / "out")
    assert [clip.id for clip in read_manifest(tmp_path / "out", "train")] == ["1", "2"]
    (line,) = read_skipped(tmp_path / "out")
    assert "unusable id or shard: " in line["reason"]
