"""The recipes for other language models: right settings, the models' published sizes, rows that are full."""

import math

import jax
import pytest
from places import ROOT

from configs import llama32, qwen3
from viavsp_jax import llm_folder, sharding
from viavsp_jax.aot import flops, workload
from viavsp_jax.aot.typical_clips import TypicalPrompt
from viavsp_jax.experiment import abstract_experiment, read_settings

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
    data = read_settings(config).data
    texts = workload.pack(data)
    positions = sum(len(own) for own, _ in texts) / workload.SIMULATED_ROWS
    assert positions > 0.97 * data.row.positions
    assert max(own[-1] for own, _ in texts) < data.row.window
    clips = data.rows * sum(labels > 0 for _, labels in texts) / workload.SIMULATED_ROWS
    assert clips == pytest.approx(recipe.CLIPS_PER_UPDATE, rel=0.02)
    schedule = read_settings(config).optimizer
    assert schedule.warmup_updates + schedule.hold_updates + schedule.decay_updates == config.updates
