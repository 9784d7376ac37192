"""How rows are filled, against the packer of training itself; and the rows that are proposed."""

import dataclasses

import grain
import numpy as np
import pytest
from small_media import media_config
from small_run import make_example, small_config

from viavsp_jax.aot import workload
from viavsp_jax.aot.typical_clips import TypicalPrompt, draw_clips
from viavsp_jax.data import lengths, packing, pipeline, records
from viavsp_jax.data.packing import RowShape
from viavsp_jax.data.settings import ClipSeconds
from viavsp_jax.preflight import rows
from viavsp_jax.preflight.look import look
from viavsp_jax.run_settings import read_settings

from configs import base, final  # isort: skip


VASR = ClipSeconds(3.04, 3.04)


def sizes_of(clips: list[dict], prompt) -> rows.Clips:
    columns = []
    for clip in clips:
        before, label = prompt.instruction("vi", "vi"), prompt.label(clip["transcript"])
        counts = clip["cluster_counts"]
        columns.append((len(before) + len(counts) + len(label) - 1, len(before), len(label), counts.sum()))
    return rows.Clips(*np.array(columns).T)


@pytest.mark.parametrize("shape", [
    RowShape(1024, 1024, 512, 8, 192), RowShape(700, 9999, 999, 99, 192), RowShape(2048, 1200, 999, 99, 192),
    RowShape(2048, 9999, 120, 99, 192),
])  # fmt: skip
def test_rows_are_filled_as_those_of_training_are(shape):
    """Each of these rows ends for another size."""
    clips = draw_clips(400, VASR, seed=3)
    dataset = grain.MapDataset.source(clips)
    to_utterance = packing.ToUtterance(TypicalPrompt(), shape, np.float32)
    found = list(pipeline.row_streams(dataset, to_utterance, 1, [0])[0])
    filling = rows.pack(sizes_of(clips, TypicalPrompt()), shape, of_clips=False)
    done = found[: len(found) - 4]  # those that were open at the end
    counts = [row["segment_ids"].max() - 1 for row in done]
    positions = [(row["segment_ids"] > 0).sum() for row in done]
    assert filling.clips == pytest.approx(np.mean(counts), rel=0.05)
    assert filling.share == pytest.approx(np.mean(positions) / shape.positions, rel=0.05)
    assert filling.largest.positions >= max(positions) and filling.largest.clips >= max(counts)


@pytest.mark.parametrize("config", [base.get_config(), final.get_config()])
def test_typical_clips_fill_rows_as_is_reckoned_for_them(config):
    data = read_settings(config).data
    filling = rows.pack(sizes_of(draw_clips(2048, data.seconds), TypicalPrompt()), data.row, of_clips=False)
    texts = workload.pack(data)
    reckoned = sum(len(positions) for positions, _ in texts) / workload.SIMULATED_ROWS / data.row.positions
    assert filling.share == pytest.approx(reckoned, rel=0.02)
    # Those of the reference's recipe hold 8 clips and much room for longer ones; those of the final one are full.
    assert (filling.share < rows.BADLY_FILLED) == (config.data.rows == 1)


@pytest.mark.parametrize("scale", [0.3, 1, 5])
@pytest.mark.parametrize("of_clips", [False, True])
def test_a_proposed_row_holds_all_and_is_well_filled(scale, of_clips):
    rng = np.random.default_rng(0)
    frames = rng.lognormal(np.log(76 * scale), 0.3, 2000).astype(int) + 2
    labels = rng.integers(3, 3 + int(20 * scale), 2000)
    clips = rows.Clips(15 + (0.6 * frames).astype(int) + labels - 1, np.full(2000, 15), labels, frames)
    shape = RowShape(1024, 1024, 512, 8, 192)
    proposed, filling = rows.propose(clips, clips, shape, of_clips)
    assert rows.fits(clips, proposed, of_clips).all()
    assert filling.share > rows.WELL_FILLED and rows.pack(clips, proposed, of_clips) == filling
    now = rows.pack(clips, shape, of_clips)
    if scale == 1:
        assert filling.clips == pytest.approx(now.clips, rel=0.15), "the clips of an update stay about as many"


def shards_with(folder, sizes: list[tuple[int, str]]):
    """Training clips of so many runs of one frame, and texts."""
    rng = np.random.default_rng(0)
    for split in ("train", "valid"):
        examples = [make_example(rng, f"{split}{i}", text) for i, (_, text) in enumerate(sizes)]
        for one, (runs, _) in zip(examples, sizes, strict=True):
            one |= {
                "features": rng.normal(size=(runs, 12)).astype(np.float16),
                "cluster_counts": np.ones(runs, np.int32),
            }
        records.write_shard(records.shard_path(folder, split, 0, 1), examples)
    records.write_metadata(folder, 12, ["train", "valid"])


def test_the_row_that_is_proposed_mends_what_is_complained_about(folders, tmp_path):
    """For another corpus than the rows were made for: the proposal of one look is right for the next."""
    shards_with(tmp_path / "s" / "av_clean", [(60 + 7 * i % 90, "một hai ba " * (1 + i % 5)) for i in range(40)])
    config = small_config(folders[0], tmp_path / "s")
    config.evaluate.split = "valid"
    found, _ = look(config, tmp_path / "run")
    (fault,), (warning,) = found.faults, found.warnings
    assert "do not fit a row" in fault and "holds all clips" in warning
    options = [word for word in warning.split() if word.startswith("--config.data.row.")]
    row = dict(option.rstrip(":").removeprefix("--config.data.row.").split("=") for option in options)
    assert row.keys() == {field.name for field in dataclasses.fields(RowShape)}
    config.data.row = {name: int(size) for name, size in row.items()}
    found, ready = look(config, tmp_path / "run")
    assert not found.faults and not found.warnings and ready.left_out == {}


def test_the_longest_clip_counts_though_it_is_not_in_the_sample(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "SAMPLE", 5)
    shards_with(tmp_path / "s" / "av_clean", [(20, "một")] * 50 + [(150, "một"), (20, "hai " * 50)] + [(20, "ba")] * 50)
    config = small_config(folders[0], tmp_path / "s")
    config.evaluate.split = "valid"
    found, _ = look(config, tmp_path / "run")
    (warning,) = found.warnings
    row = dict(word.rstrip(":").removeprefix("--config.data.row.").split("=")
               for word in warning.split() if word.startswith("--config"))  # fmt: skip
    config.data.row = {name: int(size) for name, size in row.items()}
    assert not look(config, tmp_path / "run")[0].faults
    assert lengths.FILE not in [path.name for path in (tmp_path / "run").glob("*")]


def test_rows_of_clips_are_judged_by_their_places(media_folders, tmp_path):
    config = media_config(*media_folders)
    assert not look(config, tmp_path)[0].warnings
    config.data.row.clips, config.data.row.frames = 8, 8 * 14  # of which positions let four in
    (warning,) = look(config, tmp_path)[0].warnings
    assert "filled, and the rest is computed for nothing" in warning and "places for clips" in warning
