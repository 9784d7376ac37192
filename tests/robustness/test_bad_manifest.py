"""Bad rows and bad tables of a corpus, one kind each, at the manifest stage."""

import unicodedata

import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest
from bad_input import REFUSED, SKIPPED, Bad, each, refused
from small_corpus import write_corpus

from viavsp_jax.prepare.__main__ import main
from viavsp_jax.prepare.manifest_files import read_manifest
from viavsp_jax.prepare.skipped import read_skipped

ENTRY = "prepare manifest"


def value(column, one):
    """Puts one value into the row of a clip."""
    return lambda row: row | {column: one}


def skip(wrong, words, make):
    return Bad(ENTRY, wrong, SKIPPED, words, make)


def refuse(wrong, words, make):
    return Bad(ENTRY, wrong, REFUSED, words, make)


def rewrite(change):
    """Changes metadata.parquet as a table of pandas."""

    def make(corpus):
        change(pd.read_parquet(corpus / "metadata.parquet")).to_parquet(corpus / "metadata.parquet")

    return make


def text(name, content):
    """Writes a file of the corpus."""
    return lambda corpus: (corpus / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def not_utf8(corpus):
    table = pyarrow.parquet.read_table(corpus / "metadata.parquet")
    wrong = pyarrow.array([b"\xff\xfe"] * len(table)).view(pyarrow.string())
    table = table.set_column(table.column_names.index("transcript"), "transcript", wrong)
    pyarrow.parquet.write_table(table, corpus / "metadata.parquet")


def twice(corpus):
    table = pyarrow.parquet.read_table(corpus / "metadata.parquet")
    pyarrow.parquet.write_table(table.append_column("fps", table["fps"]), corpus / "metadata.parquet")


def damaged(corpus):
    content = (corpus / "metadata.parquet").read_bytes()
    (corpus / "metadata.parquet").write_bytes(content[:4] + bytes(len(content) // 2) + content[4 + len(content) // 2 :])


def directory(corpus):
    (corpus / "metadata.parquet").unlink()
    (corpus / "metadata.parquet").mkdir()


def other_shard(metadata):
    """The same id in one split, from another folder."""
    return pd.concat([metadata, metadata.iloc[:1].assign(shard="elsewhere")])


CASES = [
    skip("id with /", "unusable id or shard: 'a/b'", value("id", "a/b")),
    skip("id with a path out of the corpus", "unusable id or shard: '../../x'", value("id", "../../x")),
    skip("shard with a path out of the corpus", "'..', expected names of files", value("shard", "..")),
    skip("id with NUL", r"unusable id or shard: 'a\x00b'", value("id", "a\0b")),
    skip("id with a line break", r"unusable id or shard: 'a\nb'", value("id", "a\nb")),
    skip("id of 300 characters", "expected names of files", value("id", "x" * 300)),
    skip("no id", "unusable id or shard: ''", value("id", None)),
    skip("no shard", "'', expected names of files", value("shard", None)),
    skip("wrong frame rate", "wrong frame rate: 30.0, expected 25", value("fps", 30.0)),
    skip("frame rate is not a number", "wrong frame rate: nan", value("fps", None)),
    skip("wrong sampling rate", "wrong sampling rate: 44100, expected 16000", value("sampling_rate", 44_100)),
    skip("frame count is missing", "no content: nan frames", value("video_num_frames", None)),
    skip("frame count is a word", "no content: many frames", value("video_num_frames", "many")),
    skip("frame count is negative", "no content: -4 frames", value("video_num_frames", "-4")),
    skip("frame count is a fraction", "not whole numbers: 4.5 frames", value("video_num_frames", "4.5")),
    skip("frame count is infinite", "too long: inf frames, at most 500", value("video_num_frames", "inf")),
    skip("clip of three hours", "too long: 270000 frames", value("video_num_frames", "270000")),
    skip("sample count is zero", "no content: 4 frames, 0 samples", value("audio_num_frames", "0")),
    skip("enormous sample count", "different lengths: 0.16 s of video", value("audio_num_frames", "1e300")),
    skip("audio much longer than video", "0.16 s of video, 60.00 s of audio", value("audio_num_frames", "960000")),
    skip("no transcript", "no transcript: nan", value("transcript", None)),
    skip("transcript of spaces only", "no transcript: ' \\t'", value("transcript", " \t")),
    skip("transcript of invisible characters only", "no transcript: '\\u200b\\x00'", value("transcript", "\u200b\0")),
    skip(
        "transcript with the replacement character", "damaged transcript: has \ufffd", value("transcript", "tr\ufffdi")
    ),
    skip("transcript of 10,000 words", "too many words: 10000 in 4 frames", value("transcript", "a " * 10_000)),
    skip("video is missing", "missing file", value("shard", "nowhere")),
    skip("directory in place of a video", "missing file", value("shard", "folders")),
    skip("video is a dangling link", "missing file", value("shard", "dangling")),
    refuse("no table", "holds no corpus of a known layout", lambda corpus: (corpus / "metadata.parquet").unlink()),
    refuse("directory in place of the table", "metadata.parquet: not a parquet file", directory),
    refuse("table is not a parquet file", "not a parquet file", text("metadata.parquet", b"PAR1 not really")),
    refuse("table without rows", "has no rows, expected one for each clip", rewrite(lambda table: table[:0])),
    refuse("columns are missing", "columns ['fps'] are missing", rewrite(lambda table: table.drop(columns="fps"))),
    refuse("duplicate column", "columns ['fps'] are missing or there twice", twice),
    refuse("table is damaged in the middle", "not a parquet file", damaged),
    refuse("ids are lists", "is usable, the first:  unusable id", rewrite(lambda table: table.assign(id=[[1]] * 3))),
    refuse("texts that are not UTF-8", "Invalid UTF8 sequence", not_utf8),
    refuse("unknown split", "has split 'dev', expected one of", rewrite(lambda table: table.assign(split="dev"))),
    refuse("no split", "has split None, expected one of", rewrite(lambda table: table.assign(split=None))),
    refuse("one id twice in a split", "occurs twice in split 'train'", rewrite(other_shard)),
    refuse(
        "one clip in two splits",
        "the clip 'train-000' is in two splits",
        rewrite(lambda table: pd.concat([table, table.iloc[:1].assign(split="test")])),
    ),
    refuse(
        "transcripts are numbers",
        "no clip of split 'train' is usable, the first: train-000 no transcript: 25",
        rewrite(lambda table: table.assign(transcript=25)),
    ),
    refuse("mapping.json is cut off", "mapping.json: not a JSON table", text("mapping.json", "[")),
    refuse("mapping.json is not UTF-8", "mapping.json: not a JSON table", text("mapping.json", b'[{"id": "\xff"}]')),
    refuse("mapping.json is nested too deeply", "mapping.json: not a JSON table", text("mapping.json", "[" * 99_999)),
    refuse("mapping.json holds numbers", "expected id and channel among them", text("mapping.json", "[1, 2]")),
    refuse(
        "mapping.json of another corpus",
        "none of 3 clips has a channel",
        text("mapping.json", '[{"id": "0", "channel": 1}]'),
    ),
    refuse("skipped.jsonl is damaged", "not a list of what was skipped", text("out/skipped.jsonl", "[\n")),
]


def run(corpus, output, *more):
    main(["manifest", "--data", str(corpus), "--output", str(output), *more])


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """The corpus, what is made of three good clips, and of the same among a bad one of each kind that is skipped."""
    folder = tmp_path_factory.mktemp("manifest")
    corpus = folder / "corpus"
    write_corpus(corpus, {"train": [4, 5, 6], "test": [4]})
    (corpus / "visual").rename(folder / "other disk")
    (corpus / "visual").symlink_to(folder / "other disk")  # media may lie elsewhere
    run(corpus, folder / "clean")
    good = pd.read_parquet(corpus / "metadata.parquet").astype({"video_num_frames": str, "audio_num_frames": str})
    good, bad = good.to_dict("records"), []
    for number, case in enumerate(case for case in CASES if case.outcome == SKIPPED):
        bad.append(case.make(good[0] | {"id": f"bad-{number}"}))
        for kind, suffix in (("visual", "mp4"), ("audio", "wav")):
            for shard in ("folders", "dangling"):
                (corpus / kind / shard).mkdir(exist_ok=True)
            (corpus / kind / "folders" / f"bad-{number}.{suffix}").mkdir()
            (corpus / kind / "dangling" / f"bad-{number}.{suffix}").symlink_to("nowhere")
    rows = [good[0], *bad[:9], good[1], *bad[9:], *good[2:]]
    pd.DataFrame(rows).to_parquet(corpus / "metadata.parquet")
    run(corpus, folder / "out")
    return folder, [str(row["id"] or "") for row in bad]


@each(CASES, SKIPPED)
def test_a_bad_clip_is_skipped_and_listed(outputs, case):
    number = [case for case in CASES if case.outcome == SKIPPED].index(case)
    (line,) = [line for line in read_skipped(outputs[0] / "out") if line["id"] == outputs[1][number]]
    assert line["split"] == "train" and case.words in line["reason"]


def test_good_clips_are_listed_as_without_the_bad(outputs, caplog):
    folder, bad = outputs
    for name in ("train.tsv", "train.wrd", "test.tsv", "test.wrd"):
        assert (folder / "out" / name).read_bytes() == (folder / "clean" / name).read_bytes()
    assert len(read_skipped(folder / "out")) == len(bad) and not (folder / "clean" / "skipped.jsonl").exists()
    with caplog.at_level("INFO"):
        run(folder / "corpus", folder / "again")
    assert f"train: 3 clips listed, {len(bad)} skipped {{'unusable id or shard': 8, " in caplog.text
    assert "test: 1 clips listed, 0 skipped" in caplog.text


def test_each_split_has_its_own_part_of_the_list(outputs, tmp_path):
    corpus = outputs[0] / "corpus"
    run(corpus, tmp_path, "--split", "train")
    (tmp_path / "skipped.jsonl").write_text('{"split": "train", "id": "old"}\n{"split": "test", "id": "kept"}\n')
    run(corpus, tmp_path, "--split", "train")
    kept, *rest = read_skipped(tmp_path)
    assert kept == {"split": "test", "id": "kept"} and rest == read_skipped(outputs[0] / "out")
    run(corpus, tmp_path, "--split", "test")
    assert read_skipped(tmp_path) == rest


@each(CASES)
def test_a_bad_table_is_refused(tmp_path, capsys, case):
    corpus, output = tmp_path / "corpus", tmp_path / "corpus" / "out"
    write_corpus(corpus, {"train": [4, 5, 6]})
    output.mkdir()
    case.make(corpus)
    before = sorted(output.iterdir())
    message = refused(lambda: run(corpus, output, "--frac", "0.9" if "mapping" in case.wrong else "1"), capsys)
    assert case.words in message and str(tmp_path) in message
    assert sorted(output.iterdir()) == before


def test_transcripts_are_written_in_one_form(tmp_path):
    """Decomposed letters are composed, what is not seen is taken away, whatever separates words becomes a space."""
    corpus = tmp_path / "corpus"
    metadata = write_corpus(corpus, {"train": [9]})
    spelled = unicodedata.normalize("NFD", "tiếng Việt")
    metadata.assign(transcript=f"\ufeff {spelled}\u2028của\u00a0tôi\t\x07đây\u200b ").to_parquet(
        corpus / "metadata.parquet"
    )
    run(corpus, tmp_path / "out")
    (clip,) = read_manifest(tmp_path / "out", "train")
    assert clip.transcript == "tiếng Việt của tôi đây"


def test_a_corpus_whose_path_breaks_lines_is_refused(tmp_path, capsys):
    corpus = tmp_path / "a\nb"
    write_corpus(corpus, {"train": [4]})
    assert "--data is " in refused(lambda: run(corpus, tmp_path / "out"), capsys)
