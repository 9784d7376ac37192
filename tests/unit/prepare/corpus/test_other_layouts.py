"""Tables, datasets, and text beside videos, made of the recorded clips; and what is said where nothing is clear."""

import json

import datasets
import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest
from bad_input import refused
from open_corpus import TRAIN, as_files, few

from viavsp_jax.data import addresses
from viavsp_jax.data.wav import write_speech
from viavsp_jax.prepare.__main__ import main
from viavsp_jax.prepare.corpus import columns
from viavsp_jax.prepare.manifest_files import read_manifest
from viavsp_jax.prepare.skipped import read_skipped
from viavsp_jax.runtime.errors import InputError


def manifest(data, output, *options):
    main(["manifest", "--data", str(data), "--output", str(output), "--workers", "0", *options])


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """A folder with the videos of four clips, in two more, their sounds beside them; and their texts by path."""
    folder, samples = tmp_path_factory.mktemp("media"), few(TRAIN, 4)
    texts = {}
    for number, (key, sample) in enumerate(samples.items()):
        place = folder / ("spk (1)" if number < 3 else "spk [2]")
        _, sound = as_files(place, {key: sample})[key]
        write_speech(place / f"{key}.wav", sound)
        texts[f"{place.name}/{key}"] = sample["label"].decode()
    return folder, texts


def rows(texts, **more):
    return pd.DataFrame([
        {"name": path.replace("/", "-"), "film": f"{path}.mp4", "wave": f"{path}.wav", "said": text, "who": path[:7]}
        for path, text in texts.items()
    ]).assign(**more)  # fmt: skip


CHOSEN = ["--columns", "id=name,video=film,audio=wave", "text=said,speaker=who"]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_a_table_with_any_names_of_columns(media, tmp_path, kind, caplog):
    folder, texts = media
    table, path = rows(texts, set=["training", "dev", "test", "test_far"]), folder / f"t.{kind}"
    write = {
        "csv": lambda: table.to_csv(path, index=False),
        "tsv": lambda: table.to_csv(path, index=False, sep="\t"),
        "jsonl": lambda: table.to_json(path, orient="records", lines=True, force_ascii=False),
        "parquet": lambda: table.to_parquet(path),
    }
    write[kind]()
    caplog.set_level("INFO")
    try:
        manifest(
            path if kind == "csv" else folder, tmp_path, *CHOSEN, *(["--layout", "table"] if kind == "tsv" else [])
        )
    finally:
        path.unlink()
    assert "a table of 4 clips; id from 'name', video from 'film'" in caplog.text and "split from 'set'" in caplog.text
    found = [clip for split in ("train", "valid", "test", "test_far") for clip in read_manifest(tmp_path, split)]
    assert [clip.id for clip in found] == list(table["name"]) and [clip.transcript for clip in found] == list(
        texts.values()
    )
    assert [clip.video for clip in found] == [str(folder / name) for name in table["film"]]
    assert [clip.audio for clip in found] == [str(folder / name) for name in table["wave"]]


def test_usual_names_need_no_options(media, tmp_path):
    """Without ids and sounds, too: the id is the path, the sound is in the video."""
    folder, texts = media
    table = pd.DataFrame({"file_name": [f"{path}.mp4" for path in texts], "sentence": list(texts.values())})
    (tmp_path / "metadata.csv").write_text(
        table.assign(file_name=f"{folder}/" + table["file_name"]).to_csv(index=False)
    )
    manifest(tmp_path / "metadata.csv", tmp_path / "out")
    clips = read_manifest(tmp_path / "out", "train")
    assert (
        [clip.video for clip in clips] == [clip.audio for clip in clips] == [f"{folder}/{path}.mp4" for path in texts]
    )
    assert clips[0].id.endswith("_spk (1)_00000000")


@pytest.mark.parametrize(
    "names", [("train.tsv", "dev.tsv", "my_test-1.tsv"), ("train/m.csv", "val/m.csv", "test/m.csv")]
)
def test_a_table_for_each_split(media, tmp_path, names):
    folder, texts = media
    for number, (name, part) in enumerate(zip(names, ([0, 3], [1], [2]), strict=True)):
        path = tmp_path / "c" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        table = rows(texts)[["film", "said"]].iloc[part].rename(columns={"film": "path", "said": "text"})
        for video in table["path"]:
            (path.parent / video).parent.mkdir(parents=True, exist_ok=True)
            (path.parent / video).symlink_to(folder / video)
        table.to_csv(path, index=False, sep="\t" if number == 1 else ",")
    manifest(tmp_path / "c", tmp_path / "out")
    found = [read_manifest(tmp_path / "out", split) for split in ("train", "valid", "test")]
    assert [[clip.transcript for clip in part] for part in found] == [
        [list(texts.values())[number] for number in part] for part in ([0, 3], [1], [2])
    ]


def test_tables_that_are_no_parts_of_one_corpus(media, tmp_path, capsys):
    folder, texts = media
    for name in ("train.csv", "notes.csv"):
        rows(texts).to_csv(tmp_path / name, index=False)
    assert "called after it" in (words := refused(lambda: manifest(tmp_path, tmp_path / "out"), capsys))
    assert "found notes.csv, train.csv" in words


def test_a_row_without_a_split_costs_no_other(media, tmp_path):
    folder, texts = media
    rows(texts, set=["train", "", "test", "khác"]).to_csv(folder / "t.csv", index=False)
    manifest(folder / "t.csv", tmp_path, *CHOSEN)
    (folder / "t.csv").unlink()
    assert [len(read_manifest(tmp_path, split)) for split in ("train", "test")] == [1, 1]
    reasons = [line["reason"] for line in read_skipped(tmp_path)]
    assert all(reason.startswith("unknown split: ") for reason in reasons)
    assert "row 2 " in reasons[0] and "has split ''" in reasons[0] and "has split 'khác'" in reasons[1]


def test_paths_as_windows_writes_them(media, tmp_path):
    folder, texts = media
    table = rows(texts)
    table["film"] = table["film"].str.replace("/", "\\")
    table.to_csv(folder / "t.csv", index=False)
    manifest(folder / "t.csv", tmp_path, *CHOSEN)
    (folder / "t.csv").unlink()
    assert [clip.video for clip in read_manifest(tmp_path, "train")] == [f"{folder}/{path}.mp4" for path in texts]


def test_validation_by_speaker(media, tmp_path):
    folder, texts = media
    rows(texts).to_csv(folder / "t.csv", index=False)
    manifest(folder / "t.csv", tmp_path, *CHOSEN, "--valid", "0.2")
    (folder / "t.csv").unlink()
    assert [len(read_manifest(tmp_path, split)) for split in ("train", "valid")] in ([3, 1], [1, 3])


def test_text_beside_videos(media, tmp_path):
    folder, texts = media
    for number, (path, text) in enumerate(texts.items()):
        inner = ("train", "val", "test", "test")[number]
        (tmp_path / "c" / inner / path).parent.mkdir(parents=True, exist_ok=True)
        for suffix in ("mp4", "wav") if number else ("mp4",):
            (tmp_path / "c" / inner / f"{path}.{suffix}").symlink_to(folder / f"{path}.{suffix}")
        lrs = f"Text:  {text.upper()}\nConf: 4\n\nWORD START END\nA 0.1 0.2\n"
        if number < 3:
            (tmp_path / "c" / inner / f"{path}.txt").write_text(lrs if number == 1 else text)
    manifest(tmp_path / "c", tmp_path / "out", "--lower_case")
    found = [clip for split in ("train", "valid", "test") for clip in read_manifest(tmp_path / "out", split)]
    assert [clip.transcript for clip in found] == list(texts.values())[:3]
    assert [clip.audio.endswith(".wav") for clip in found] == [False, True, True]
    assert found[0].id == "train_spk (1)_00000000"
    (line,) = read_skipped(tmp_path / "out")
    assert line["split"] == "test" and "no transcript: no test/spk [2]/" in line["reason"]


def test_suffixes_as_cameras_write_them(media, tmp_path):
    folder, texts = media
    for number, (path, text) in enumerate(texts.items()):
        for suffix, name in (("mp4", "MP4"), ("wav", "Wav")):
            (tmp_path / f"c/{number}.{name}").parent.mkdir(exist_ok=True)
            (tmp_path / f"c/{number}.{name}").symlink_to(folder / f"{path}.{suffix}")
        (tmp_path / f"c/{number}.TXT").write_text(text)
    manifest(tmp_path / "c", tmp_path / "out")
    clips = read_manifest(tmp_path / "out", "train")
    assert [clip.transcript for clip in clips] == list(texts.values())
    assert [clip.audio for clip in clips] == [str(tmp_path / f"c/{number}.Wav") for number in range(4)]


def test_auto_avsr_keeps_texts_in_folders_of_their_own(media, tmp_path):
    folder, texts = media
    for path, text in texts.items():
        video, words = (tmp_path / f"c/lrs3_{kind}_seg24s/{path}" for kind in ("video", "text"))
        for place in (video, words):
            place.parent.mkdir(parents=True, exist_ok=True)
        video.with_suffix(".mp4").symlink_to(folder / f"{path}.mp4")
        words.with_suffix(".txt").write_text(text)
    manifest(tmp_path / "c", tmp_path / "out")
    assert [clip.transcript for clip in read_manifest(tmp_path / "out", "train")] == list(texts.values())


@pytest.fixture(scope="module")
def dataset(media):
    """The clips as a dataset of Hugging Face's own library, media as bytes."""
    folder, texts = media
    content = {
        "video": [{"bytes": (folder / f"{path}.mp4").read_bytes(), "path": f"{path}.mp4"} for path in texts],
        "audio": [{"bytes": (folder / f"{path}.wav").read_bytes(), "path": None} for path in texts],
        "transcription": list(texts.values()),
        "speaker_id": [path[:7] for path in texts],
    }
    return datasets.Dataset.from_dict(content)


@pytest.mark.parametrize("form", ["save_to_disk", "parquet", "arrow"])
def test_datasets_with_media_in_them(media, dataset, tmp_path, form, caplog):
    folder, texts = media
    parts = {"train": dataset.select([0, 1]), "validation": dataset.select([2]), "test": dataset.select([3])}
    if form == "save_to_disk":
        datasets.DatasetDict(parts).save_to_disk(tmp_path / "c")
    elif form == "arrow":
        parts["train"].save_to_disk(tmp_path / "c/train", num_shards=2)
        parts["validation"].save_to_disk(tmp_path / "c/dev")
        parts["test"].save_to_disk(tmp_path / "c/test")
    else:
        (tmp_path / "c/data").mkdir(parents=True)
        for split, part in parts.items():
            part.to_parquet(tmp_path / f"c/data/{split}-00000-of-00001.parquet", batch_size=1)
    caplog.set_level("INFO")
    manifest(tmp_path / "c", tmp_path / "out")
    assert "tables with media" in caplog.text and "text from 'transcription'" in caplog.text
    found = [clip for split in ("train", "valid", "test") for clip in read_manifest(tmp_path / "out", split)]
    assert [clip.transcript for clip in found] == list(texts.values())
    assert [clip.id for clip in found] == [path.split("/")[1] for path in texts]
    for clip, path in zip(found, texts, strict=True):
        assert addresses.read_bytes(clip.video) == (folder / f"{path}.mp4").read_bytes()
        assert addresses.read_bytes(clip.audio) == (folder / f"{path}.wav").read_bytes()


def test_names_of_files_that_name_no_clip(media, tmp_path):
    """As where all are called audio.mp4: then rows are counted."""
    folder, texts = media
    same = [{"bytes": (folder / f"{path}.mp4").read_bytes(), "path": "clip.mp4"} for path in texts]
    (tmp_path / "c").mkdir()
    datasets.Dataset.from_dict({"video": same, "text": list(texts.values())}).to_parquet(tmp_path / "c/train.parquet")
    manifest(tmp_path / "c", tmp_path / "out")
    ids = [clip.id for clip in read_manifest(tmp_path / "out", "train")]
    assert ids == [f"train.parquet#video.bytes@{row}" for row in range(4)]


def test_a_dataset_that_names_files_only(media, tmp_path):
    folder, texts = media
    empty = [{"bytes": None, "path": str(folder / f"{path}.mp4")} for path in texts]
    datasets.Dataset.from_dict({"video": empty, "text": list(texts.values())}).save_to_disk(tmp_path / "c")
    manifest(tmp_path / "c", tmp_path / "out")
    assert [clip.video for clip in read_manifest(tmp_path / "out", "train")] == [one["path"] for one in empty]


def test_what_is_not_clear_is_asked_for(media, tmp_path, capsys):
    folder, texts = media
    rows(texts).to_csv(folder / "t.csv", index=False)
    (folder / "spk (1)/00000000.txt").write_text("lời")
    try:
        words = refused(lambda: manifest(folder, tmp_path), capsys)
        assert "could be read as table" in words and "folder" in words and "--layout" in words
        words = refused(lambda: manifest(folder / "t.csv", tmp_path), capsys)
        assert (
            "known to hold video or text" in words
            and "--columns video=COLUMN,text=COLUMN, of" in words
            and "film" in words
        )
        words = refused(lambda: manifest(folder, tmp_path, "--layout", "table", "--columns", "text=what"), capsys)
        assert "columns ['what'] are missing" in words
        manifest(folder, tmp_path, "--layout", "folder")
        assert len(read_manifest(tmp_path, "train")) == 1 and len(read_skipped(tmp_path)) == 3
    finally:
        (folder / "t.csv").unlink()
        (folder / "spk (1)/00000000.txt").unlink()
    (tmp_path / "empty").mkdir()
    assert "holds no corpus of a known layout" in refused(lambda: manifest(tmp_path / "empty", tmp_path / "x"), capsys)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"video": "a.mp4", "text": "x"}\n[1]\n', "line 2 is no JSON object"),
        ('{"video": "a.mp4"\n', "line 1 is not JSON"),
        ("\n", "has no rows"),
        (
            '{"video": "a.mp4", "text": "x", "split": "later"}\n',
            "unknown split: {folder}/t.jsonl: row 1 (id 'a') has split 'later'",
        ),
        ('{"video": 7, "text": "x"}\n', "no clip of split 'train' is usable, the first: 7 missing file"),
        ('{"video": "", "text": "x"}\n', "no video: "),
    ],
)
def test_bad_tables(tmp_path, capsys, content, words):
    (tmp_path / "t.jsonl").write_text(content)
    found = refused(lambda: manifest(tmp_path / "t.jsonl", tmp_path / "out"), capsys)
    assert words.format(folder=tmp_path) in found


def test_a_table_whose_media_are_missing_or_elsewhere(media, tmp_path, capsys):
    folder, texts = media
    lines = [{"video": f"{folder}/{path}.mp4", "text": text} for path, text in texts.items()]
    lines.append({"video": "../outside.mp4", "text": "x"})
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    manifest(tmp_path / "t.jsonl", tmp_path / "out")
    (line,) = read_skipped(tmp_path / "out")
    assert line["reason"].startswith("missing file: ") and len(read_manifest(tmp_path / "out", "train")) == 4


def test_a_damaged_table_of_a_dataset(media, dataset, tmp_path, capsys):
    (tmp_path / "c").mkdir()
    dataset.to_parquet(tmp_path / "c/train.parquet")
    content = (tmp_path / "c/train.parquet").read_bytes()
    (tmp_path / "c/train.parquet").write_bytes(content[: len(content) // 2])
    assert "train.parquet: not a parquet file" in refused(lambda: manifest(tmp_path / "c", tmp_path / "out"), capsys)
    table = pyarrow.table({"video": [b"1"], "words": ["x"]})
    pyarrow.parquet.write_table(table, tmp_path / "c/train.parquet")
    assert "known to hold text" in refused(lambda: manifest(tmp_path / "c", tmp_path / "out"), capsys)


def test_columns_are_checked():
    assert columns.parse(["id=a,text=b c", "video=d"]) == {"id": "a", "text": "b c", "video": "d"}
    for wrong in ("text", "words=a", "text=", "text=a,text=b"):
        with pytest.raises(InputError, match="--columns has"):
            columns.parse([wrong])
