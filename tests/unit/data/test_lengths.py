"""Records that do not fit a row: found before anything is trained, by the lists beside the shards or by the records."""

import itertools
import json
import pathlib
import shutil

import numpy as np
import pytest
from small_media import media_config
from small_run import WIDTH, check_lengths, make_example, make_shards, small_config
from small_shards import options
from small_shards import prepared as prepared

from viavsp_jax.data import lengths, pipeline, records
from viavsp_jax.data.compression import CLUSTERS, Compression
from viavsp_jax.data.examples import FEATURES, MEDIA, Kind
from viavsp_jax.data.prompt import load_prompt
from viavsp_jax.data.sources import count_fields, open_sources
from viavsp_jax.prepare.__main__ import main as prepare
from viavsp_jax.run_settings import read_settings
from viavsp_jax.runtime.errors import InputError

LONG = " ".join(["a b"] * 30)
FRAMES = 200


def rewrite(folder: pathlib.Path, changes: dict[str, dict], kind: Kind = FEATURES) -> None:
    """Records with other values by id; the metadata are those of the new shards."""
    splits = sorted(records.complete_splits(folder, kind))
    for split in splits:
        examples = [one | changes.get(one["id"], {}) for one in records.open_split(folder, split, kind)]
        records.write_shard(records.shard_path(folder, split, 0, 1, kind), examples, kind)
    records.write_metadata(folder, WIDTH if kind is FEATURES else None, splits, kind)


def write_lists(folder: pathlib.Path, kind: Kind = FEATURES) -> None:
    """As the shards stage does, but in another order than that of the records, as that may be."""
    for split in records.complete_splits(folder, kind):
        found = sorted(records.open_split(folder, split, kind), key=lambda one: one["id"])
        clips = [f"{one['id']}-{one['source_language']}-{one['target_language']}\tv\ta\t1\t640" for one in found]
        lists = {"tsv": ["/corpus", *clips], "wrd": [one["transcript"] for one in found]}
        lists |= {name: [" ".join(map(str, one[name])) for one in found] for name in kind.counts}
        for name, lines in lists.items():
            (folder / f"{split}.{name}").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def long_clip() -> dict:
    return {"features": np.zeros((FRAMES, WIDTH), np.float16), "cluster_counts": np.full(FRAMES // 4, 4, np.int32)}


@pytest.fixture(scope="module", params=["lists", "records"])
def too_long(request, tmp_path_factory):
    """Shards, with and without lists beside them, of which three records are too long; read only."""
    folder = tmp_path_factory.mktemp("too_long") / "av_clean"
    make_shards(folder)
    rewrite(folder, {"train0_3": long_clip(), "train0_5": {"transcript": LONG}, "valid0_1": {"transcript": LONG}})
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "lists":
            write_lists(folder)
            patch.setattr(lengths, "_FEW", 0)
            patch.delattr(lengths, "_from_records")
        yield folder.parent


@pytest.fixture
def config(folders, too_long):
    return small_config(folders[0], too_long)


@pytest.fixture(scope="module")
def prompt(folders):
    return load_prompt(folders[0], "</s>")


def test_all_that_is_too_long_is_found_at_once(config, prompt, tmp_path):
    labels = len(prompt.label(LONG))
    with pytest.raises(InputError) as caught:
        check_lengths(config, prompt, tmp_path)
    words = [
        "3 of 29 records do not fit a row: record train0_3 of av_clean (train) needs 200 frames, a row holds 96",
        f"record train0_5 of av_clean (train) needs {labels} label tokens, a row holds 40",
        "record valid0_1 of av_clean (valid) needs",
        "config.data.row.frames=200, config.data.row.labels=",
        "config.data.too_long=skip",
        str(tmp_path / "too_long.jsonl"),
    ]
    message = str(caught.value)
    assert not [one for one in words if one not in message] and "\n" not in message
    listed = [json.loads(line) for line in (tmp_path / "too_long.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(one["name"], one["split"], one["id"]) for one in listed] == [
        ("av_clean", "train", "train0_3"), ("av_clean", "train", "train0_5"), ("av_clean", "valid", "valid0_1"),
    ]  # fmt: skip
    assert listed[0]["reason"] == "needs 200 frames, a row holds 96"
    # The row that is proposed holds them, and one that is smaller by one of its sizes does not.
    row = message.partition("which needs ")[2].partition(", or config")[0]
    proposed = dict(one.removeprefix("config.data.row.").split("=") for one in row.split(", "))
    config.data.row.update({name: int(size) for name, size in proposed.items()})
    assert check_lengths(config, prompt, tmp_path) == {} and not (tmp_path / "too_long.jsonl").exists()
    for name, size in proposed.items():
        config.data.row[name] = int(size) - 1
        with pytest.raises(InputError, match=f"config.data.row.{name}={size},? or"):
            check_lengths(config, prompt, tmp_path)
        config.data.row[name] = int(size)


def ids_by_text(folder):
    return {one["transcript"]: one["id"] for one in records.open_split(folder, "train")}


def read_ids(config, prompt, left_out, count):
    """The ids of the clips in so many batches, in the order of their rows."""
    known = ids_by_text(f"{config.data.path}/av_clean")
    batches = pipeline.training_batches(read_settings(config).data, prompt, left_out=left_out)
    found = []
    for batch in itertools.islice(batches, count):
        for row in range(config.data.rows):
            labels = batch["targets"][row][batch["weights"][row] > 0].tolist()
            while prompt.end_id in labels:
                end = labels.index(prompt.end_id) + 1
                found.append(known[prompt.text(labels[:end])])
                labels = labels[end:]
    batches.close()
    return found


def test_what_is_too_long_can_be_left_out(config, prompt, tmp_path):
    config.data.too_long = "skip"
    left_out = check_lengths(config, prompt, tmp_path)
    assert left_out == {("av_clean", "train"): {"train0_3", "train0_5"}, ("av_clean", "valid"): {"valid0_1"}}
    assert len((tmp_path / "too_long.jsonl").read_text().splitlines()) == 3
    found = read_ids(config, prompt, left_out, 12)
    stored = set(ids_by_text(f"{config.data.path}/av_clean").values())
    assert set(found) == stored - {"train0_3", "train0_5"}
    valid = list(pipeline.validation_batches(read_settings(config).data, prompt, left_out=left_out))
    assert sum(batch["weights"].sum() for batch in valid) == pytest.approx(4)
    # Every process leaves out the same, and a restart goes on with what comes next.
    batches = pipeline.training_batches(read_settings(config).data, prompt, left_out=left_out)
    parts = [pipeline.training_batches(read_settings(config).data, prompt, [row], left_out) for row in range(2)]
    for _ in range(3):
        whole, *rows = map(next, (batches, *parts))
        assert all(np.array_equal(whole["tokens"][[row]], one["tokens"]) for row, one in enumerate(rows))
    again = pipeline.training_batches(read_settings(config).data, prompt, left_out=left_out)
    again.move(batches.places())
    for _ in range(4):
        assert np.array_equal(next(again)["features"], next(batches)["features"])


def test_the_place_of_a_record_does_not_depend_on_others_that_are_left_out(config, prompt):
    """So a run that leaves out others from some update on goes on with the clips that it would have read."""
    config.data.row = {"positions": 256, "frames": 256, "labels": 200, "clips": 1, "window": 256}
    config.data.rows = 1
    whole = read_ids(config, prompt, None, 40)
    without = read_ids(config, prompt, {("av_clean", "train"): frozenset({"train0_3", "train0_5"})}, 30)
    assert without == [id for id in whole if id not in ("train0_3", "train0_5")][:30]


def test_a_split_of_which_nothing_is_left(config, prompt, tmp_path):
    config.data.too_long, config.data.row.frames = "skip", 9
    with pytest.raises(InputError) as caught:
        check_lengths(config, prompt, tmp_path)
    for split, count, one in zip(("train", "valid"), (24, 5), caught.value.sentences, strict=True):
        assert one.startswith(f"none of the {count} records of split {split!r} fits a row, the first: record")
    assert len((tmp_path / "too_long.jsonl").read_text().splitlines()) == 24 + 5


def test_languages_are_looked_at_too(config, prompt, tmp_path, too_long):
    config.data.path = str(shutil.copytree(too_long, tmp_path / "shards"))
    rewrite(tmp_path / "shards" / "av_clean", {f"{x}0_2": {"source_language": "xx"} for x in ("valid", "test")})
    if (too_long / "av_clean" / "train.tsv").exists():
        write_lists(tmp_path / "shards" / "av_clean")
    with pytest.raises(InputError, match="record test0_2: language 'xx' is unknown"):
        lengths.check_languages(read_settings(config).data, prompt, "av_clean", config.evaluate.split)
    config.data.too_long = "skip"
    with pytest.raises(InputError, match="record valid0_2: language 'xx' is unknown"):
        check_lengths(config, prompt, tmp_path)


def columns(found: lengths.Records) -> set[tuple]:
    return set(zip(found.ids, found.languages, found.transcripts, found.frames.tolist(), found.segments.tolist(),
                   strict=True))  # fmt: skip


def test_lists_of_the_shards_stage_say_what_its_records_say(prepared, tmp_path):
    prepare(options(prepared, tmp_path, "--kind", "both", "--num_shards", "2"))
    for folder, kind in (("av_clean", FEATURES), ("media_clean", MEDIA)):
        for split in ("train", "test"):
            source = records.open_split(tmp_path / folder, split, kind)
            listed, read = (
                make(source, kind.counts, (CLUSTERS,)) for make in (lengths._from_lists, lengths._from_records)
            )
            assert columns(listed) == columns(read) and len(columns(read)) == len(source)


@pytest.mark.parametrize("change", [
    lambda folder: (folder / "train.wrd").unlink(),
    lambda folder: (folder / "train.wrd").write_bytes(b"\xff\n" * 24),
    lambda folder: (folder / "train.wrd").write_text("một\n" * 23),
    lambda folder: (folder / "train.tsv").write_text("/\n" + "x\tv\ta\t1\t640\n" * 24),
    lambda folder: (folder / "train.cluster_counts").write_text("1 2\n" * 23 + "1 x\n"),
    lambda folder: (folder / "train.cluster_counts").write_text("1 2\n" * 23 + "\n"),
    lambda folder: records.write_shard(records.shard_path(folder, "train", 0, 1), [
        make_example(np.random.default_rng(number), f"x{number}", "hai " * 4000) for number in range(24)
    ]),
])  # fmt: skip
def test_lists_that_are_not_those_of_the_shards_are_not_taken(tmp_path, change, monkeypatch):
    monkeypatch.setattr(lengths, "_FEW", 0)
    folder = make_shards(tmp_path / "av_clean")
    write_lists(folder)
    assert lengths._from_lists(records.open_split(folder, "train"), ["cluster_counts"], (CLUSTERS,))
    change(folder)
    source = records.open_split(folder, "train")
    assert lengths._from_lists(source, ["cluster_counts"], (CLUSTERS,)) is None
    expected = {one["id"]: one["transcript"] for one in source}
    found = lengths.read_lengths(source, ["cluster_counts"], (CLUSTERS,))
    assert dict(zip(found.ids, found.transcripts, strict=True)) == expected


def test_what_lists_do_not_say_is_looked_at_too(tmp_path, monkeypatch):
    """Training would end at such a record: its text is empty, or its shard cannot be opened."""
    monkeypatch.setattr(lengths, "_FEW", 0)
    folder = make_shards(tmp_path / "av_clean")
    write_lists(folder)
    lines = (folder / "train.wrd").read_text(encoding="utf-8").splitlines()
    (folder / "train.wrd").write_text("".join(f"{line}\n" for line in [*lines[:7], " ", *lines[8:]]), encoding="utf-8")
    named = sorted(one["id"] for one in records.open_split(folder, "train"))[7]
    with pytest.raises(InputError, match=f"record {named} of split 'train' has an empty transcript, and so have 0 oth"):
        lengths.read_lengths(records.open_split(folder, "train"), ["cluster_counts"], (CLUSTERS,))
    shard = records.shard_path(folder, "valid", 0, 1)
    shard.write_bytes(bytes(shard.stat().length))
    with pytest.raises(InputError, match="viavsp-valid.array_record-00000-of-00001: record 0 .* cannot be read"):
        lengths.read_lengths(records.open_split(folder, "valid"), ["cluster_counts"], (CLUSTERS,))


def test_clips_have_an_equal_share_of_the_row(media_folders, prompt, tmp_path):
    config = media_config(*media_folders)
    assert check_lengths(config, prompt, tmp_path) == {}
    (source,) = open_sources(read_settings(config).data, ("av_clean",), "train")
    longest = max(int(one["cluster_counts_av"].sum()) for one in source)
    config.data.row.frames = 2 * longest - 1
    with pytest.raises(InputError) as caught:
        check_lengths(config, prompt, tmp_path)
    assert f"needs {longest} frames, each clip of a row holds {longest - 1}" in str(caught.value)
    assert f"config.data.row.frames={2 * longest}, or" in str(caught.value)
    config.data.too_long = "skip"
    left_out = check_lengths(config, prompt, tmp_path)
    batches = pipeline.training_batches(read_settings(config).data, prompt, left_out=left_out)
    assert next(batches)["video"].shape[2] == longest - 1
    batches.close()


def test_what_modality_dropout_may_leave_of_a_clip_has_to_fit(media_folders, prompt, tmp_path):
    """The video alone is averaged into other runs than both together, and into more of them."""
    folder = shutil.copytree(media_folders[1], tmp_path / "shards")
    clips = records.open_split(folder / "media_clean", "train", MEDIA)
    in_ones = {x["id"]: {"cluster_counts_video": np.ones(x["cluster_counts_video"].sum(), np.int32)} for x in clips}
    rewrite(folder / "media_clean", in_ones, MEDIA)
    config = media_config(media_folders[0], folder, media_folders[2])
    assert count_fields(read_settings(config).data, "av_clean", "train") == ["cluster_counts_av"]
    config.data.augment.drop_audio = 0.1
    assert count_fields(read_settings(config).data, "av_clean", "train") == [
        "cluster_counts_av",
        "cluster_counts_video",
    ]
    assert count_fields(read_settings(config).data, "av_clean", "valid") == ["cluster_counts_av"]
    assert count_fields(read_settings(config).data, "audio_clean", "train") == ["cluster_counts_audio"]
    (source,) = open_sources(read_settings(config).data, ("av_clean",), "train")
    start = len(prompt.instruction("vi", "vi"))

    def longest(name):
        return max(start + len(one[name]) + len(prompt.label(one["transcript"])) - 1 for one in source)

    needed = max(longest(f"cluster_counts_{modality}") for modality in ("av", "video"))
    assert needed > longest("cluster_counts_av")
    config.data.row.window = needed - 1
    with pytest.raises(InputError, match=f"config.data.row.window={needed}, or"):
        check_lengths(config, prompt, tmp_path)
    config.data.augment.drop_audio, config.data.row.window = 0.0, longest("cluster_counts_av")
    assert check_lengths(config, prompt, tmp_path) == {}


@pytest.mark.parametrize("text", ["", "một hai", "ngã tư đường " * 9, "𝄞 ằ\u0301 日本", "\x00\t a  b", "ﷺ"])
def test_a_label_is_never_longer_than_its_bound(prompt, text):
    exact = len(prompt.label(text))
    assert prompt.label_lengths([text]) == [exact]
    none, plenty = (lengths._label_lengths(prompt, [text], np.array([room])) for room in (0, 10**6))
    assert none == [exact] and plenty >= exact


@pytest.mark.parametrize(
    "texts", [("pool:2",), ("clusters+max:2",), ("pool:3", "clusters"), ("pool:3", "clusters+max:1")]
)
def test_the_most_positions_that_any_compression_makes(prepared, tmp_path, texts):
    """By lists and by records: of media, those of the modality that makes most of them."""
    prepare(options(prepared, tmp_path, "--kind", "both"))
    ways = tuple(map(Compression.of, texts))
    for folder, kind in (("av_clean", FEATURES), ("media_clean", MEDIA)):
        source = records.open_split(tmp_path / folder, "train", kind)
        expected = {
            one["id"]: max(len(way.run_lengths(one[name])) for way in ways for name in kind.counts) for one in source
        }
        for read in (lengths._from_lists, lengths._from_records):
            found = read(source, kind.counts, ways)
            assert dict(zip(found.ids, found.segments.tolist(), strict=True)) == expected
            frames = {one["id"]: int(one[kind.counts[0]].sum()) for one in source}
            assert dict(zip(found.ids, found.frames.tolist(), strict=True)) == frames


@pytest.mark.parametrize("texts", [("pool:4",), ("clusters", "clusters+max:1"), ("pool:1", "pool:4")])
def test_a_row_has_to_hold_what_any_compression_makes(folders, prompt, tmp_path, texts):
    """No more and no less: with one position fewer no update could be made of some clip."""
    config = small_config(*folders)
    config.data.compression = texts
    config.data.row = {"positions": 256, "frames": 96, "labels": 60, "clips": 4, "window": 256}
    data = read_settings(config).data
    assert check_lengths(config, prompt, tmp_path) == {}
    start = len(prompt.instruction("vi", "vi"))
    (train,), (valid,) = (open_sources(data, ("av_clean",), split) for split in ("train", "valid"))

    def longest(source, ways):
        label = {one["id"]: len(prompt.label(one["transcript"])) - 1 for one in source}
        return max(start + label[one["id"]] + len(x.run_lengths(one["cluster_counts"])) for one in source for x in ways)

    def read_all():
        batches = pipeline.training_batches(read_settings(config).data, prompt)
        for _ in range(60):
            next(batches)
        batches.close()
        list(pipeline.validation_batches(read_settings(config).data, prompt))

    needed = max(longest(train, data.compression), longest(valid, data.compression[:1]))
    config.data.row.window = needed
    assert check_lengths(config, prompt, tmp_path) == {}
    read_all()
    config.data.row.window = needed - 1
    with pytest.raises(InputError, match=f"config.data.row.window={needed}, or"):
        check_lengths(config, prompt, tmp_path)
    with pytest.raises(InputError, match=rf"needs {needed} positions, a row holds {needed - 1}: raise"):
        read_all()
