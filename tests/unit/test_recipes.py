"""The recipes for other language models: right settings, the models' published sizes, rows that are full."""

import math

import jax
import pytest
from jax.sharding import AbstractMesh
from places import ROOT

from configs import final, llama32, qwen3, vicocktail
from viavsp_jax import llm_folder, sharding
from viavsp_jax.aot import flops, workload
from viavsp_jax.aot.typical_clips import TypicalPrompt
from viavsp_jax.evaluation.report.conditions import condition
from viavsp_jax.experiment import abstract_experiment
from viavsp_jax.run_settings import follow_devices, read_settings
from viavsp_jax.runtime.errors import InputError

SHAPES = ROOT / "configs" / "shapes"
RECIPES = [(qwen3, "qwen3-4b"), (llama32, "llama-3.2-3b")]
# As their authors count them, heads that are tied to the embedding once.
WEIGHTS = {"qwen3-4b": 4_022_468_096, "llama-3.2-3b": 3_212_749_824}


class LongerLabels(TypicalPrompt):
    """Of so many tokens as these models' tokenizers make: 1.25 a syllable."""

    def label(self, text: str) -> list[int]:
        """Begin token, text, end token."""
        return [self.begin_id, *[self._word_id] * round(1.25 * len(text.split())), self.end_id]


@pytest.mark.parametrize(("recipe", "name"), RECIPES, ids=WEIGHTS)
def test_shapes_build(recipe, name):
    config, llama = recipe.get_config(), llm_folder.llama_config(SHAPES / name)
    config.mesh.data = 1
    settings = read_settings(config)
    experiment = abstract_experiment(settings, llama, sharding.make_mesh(settings.mesh), settings.dtype, 15)
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(experiment.frozen)) == WEIGHTS[name]
    assert experiment.trainable["llm"]["layers"].keys() == {*settings.lora.targets}
    # The scales of norms are all that no token is multiplied by as by a matrix.
    norms = sum(math.prod(x.shape) for path, x in jax.tree.leaves_with_path(experiment.frozen) if "scale" in str(path))
    assert flops._layer_weights(llama) + flops._head_weights(llama) + norms == WEIGHTS[name]


@pytest.mark.parametrize(("recipe", "name"), RECIPES, ids=WEIGHTS)
def test_rows_are_full_and_the_clips_as_many_as_the_schedule_says(recipe, name, monkeypatch):
    monkeypatch.setattr(workload, "TypicalPrompt", LongerLabels)
    config = recipe.get_config()
    settings = read_settings(config)
    data = follow_devices(settings, sharding.make_mesh(settings.mesh, jax.devices("cpu")[:1]), 15).data
    texts = workload.pack(data)
    positions = sum(len(own) for own, _ in texts) / workload.SIMULATED_ROWS
    assert positions > 0.97 * data.row.positions
    assert max(own[-1] for own, _ in texts) < data.row.window
    clips = data.rows * sum(labels > 0 for _, labels in texts) / workload.SIMULATED_ROWS
    assert clips == pytest.approx(recipe.CLIPS_PER_UPDATE, rel=0.02)
    schedule = read_settings(config).optimizer
    assert schedule.warmup_updates + schedule.hold_updates + schedule.decay_updates == config.updates


SLICES = (1, 2, 3, 4, 8, 12, 16, 24, 32, 48, 64, 128, 256)


@pytest.mark.parametrize("chips", SLICES)
def test_the_final_recipe_keeps_its_clips_an_update_on_any_slice(chips):
    """Every device gets as many rows; a clip that fits a row of the recipe fits the shorter ones."""
    settings = read_settings(final.get_config())
    mesh = AbstractMesh((chips, 1, 1), sharding.AXES)
    found, whole = (
        follow_devices(settings, mesh, 15),
        follow_devices(settings, AbstractMesh((8, 1, 1), sharding.AXES), 15),
    )
    data = found.data
    assert data.rows % chips == 0 and found.evaluation.rows == 2 * chips
    assert (data == whole.data) == (chips in (1, 2, 4, 8)) and whole.data.row == settings.data.row
    texts = workload.pack(data)
    clips = data.rows * sum(labels > 0 for _, labels in texts) / workload.SIMULATED_ROWS
    assert clips == pytest.approx(final.CLIPS_PER_UPDATE, rel=0.05)
    filled = sum(len(own) for own, _ in texts) / workload.SIMULATED_ROWS / data.row.positions
    assert filled > {128: 0.7, 256: 0.4}.get(chips, 0.84)
    assert data.row.window == 192 and data.row.positions % 64 == 0
    assert min(data.row.positions, data.row.labels, data.row.frames / 2) >= data.row.window


def test_rows_of_clips_keep_the_frames_of_a_clip():
    config = final.get_config()
    config.encoder.train = True
    row = follow_devices(read_settings(config), AbstractMesh((64, 1, 1), sharding.AXES), 15).data.row
    assert (row.clips, row.clip_frames) == (4, 76)


def test_rows_of_a_device_that_cannot_be_divided():
    config = final.get_config()
    config.device_rows = 3
    with pytest.raises(InputError, match="config.device_rows is 3, which does not divide the 8 rows of each device"):
        follow_devices(read_settings(config), AbstractMesh((1, 1, 1), sharding.AXES), 15)


def test_vicocktail_names_its_test_sets_as_the_report_reads_them():
    """And makes room for its longest clips, of 15 s."""
    settings = read_settings(vicocktail.get_config())
    found = [condition(name) for name in settings.evaluation.names]
    noisy = {(one["snr_db"], one["interferers"]) for one in found if "interferers" in one}
    assert noisy == {(snr, count) for snr in (-5, 0, 5, 10) for count in (1, 2)}
    assert [one["lost_percent"] for one in found if "lost_percent" in one] == [25, 50]
    assert len(found) == len(set(settings.evaluation.names)) == 2 * (8 + 1) + 1 + 2
    row = settings.data.row
    assert row.clip_frames == 375 and 2 / 3 * 375 + 90 + 15 <= row.window <= row.positions
    augment = settings.data.augment
    assert augment.talkers == (1, 2) and {-5, 20} <= set(augment.snr_db) and augment.drop_frames.spans
