"""The table of settings: it knows all that our configs set, takes what they say, and refuses the rest in one list."""

import json

import pytest

from configs import base, demo, demo_encoder, final, llama32, qwen3
from viavsp_jax import settings
from viavsp_jax.decoding.search import DecodingConfig
from viavsp_jax.rules import TABLE
from viavsp_jax.run_settings import read_settings
from viavsp_jax.runtime.errors import InputError
from viavsp_jax.runtime.run_info import flat

WRONG = {
    "dtype": ("bf16", "float16", "float64", 32, None),
    "seed": (-1, 2**32, 1.0, True),
    "updates": (0, -1, 2**31, 1.5),
    "log_every": (0,),
    "profile_steps": ((1,), (3, 2), (0, 2), ("1", "2"), "1,2", 5),
    "label_smoothing": (-0.1, 1.0, 2.0, float("nan")),
    "remat": ("all",),
    "llm.end_token": (" ", "</s> "),
    "prompt.instruction": (" ", "Write {language}: ", "{", None),
    "prompt.chat": ("yes", 1),
    "llm.quantization": ("int4", None),
    "lora.rank": (0, -1),
    "lora.alpha": (0.0, float("inf")),
    "lora.dropout": (1.0, 2.0, -0.1),
    "encoder.train": (1, "yes"),
    "encoder.freeze_updates": (-1,),
    "encoder.batch_norm": ("own",),
    "encoder.layer_drop": (1.0,),
    "data.train": ((), "av_clean", ("av_clean/",), ("",), (1,)),
    "data.weights": ((0.0,), (-1,), 1.0, ("1",)),
    "data.compression": ((), "clusters", ("pool",), ("clusters", "pool:0"), ("max:2",), (2,)),
    "data.augment.mask.times": (-1,),
    "data.augment.mask.bands": (0, 27),
    "init_from": (None,),
    "trackers": (("wandb",), "wandb:init"),
    "train.parts": ((), ("adapters",), ("lora", "lora"), "lora"),
    "data.augment.noise.probability": (1.5,),
    "data.augment.noise.snr_db": ((float("nan"),),),
    "data.augment.noise.talkers": ((), (0,), (1.5,), 2),
    "data.augment.drop_audio": (-0.5,),
    "data.augment.drop_frames.spans": (-1, 1.5),
    "data.augment.drop_frames.frames": (0,),
    "data.feature_width": (0,),
    "device_rows": (-1,),
    "data.rows": (0, -2),
    "data.row.clips": (0,),
    "data.row.window": (0,),
    "data.too_long": ("drop", None),
    "optimizer.peak_lr": (-1.0, 0.0, float("nan"), "1e-3"),
    "optimizer.name": ("sgd",),
    "optimizer.weight_decay": (-0.1,),
    "optimizer.clip_norm": (-1.0, float("inf")),
    "optimizer.schedule": ("linear",),
    "optimizer.warmup_updates": (-5, -0.1, 1.5, "10%", True),
    "optimizer.decay_updates": (2.5,),
    "optimizer.b2": (1.0,),
    "optimizer.eps": (0.0,),
    "mesh.data": (0, -2),
    "checkpoint.every": (0,),
    "checkpoint.keep": (0,),
    "checkpoint.best_by": ("loss",),
    "checkpoint.patience": (-1, 0.5),
    "samples.clips": (-1,),
    "samples.max_new_tokens": (0,),
    "evaluate.names": ((),),
    "evaluate.rows": (0, -2),
    "evaluate.bucket": (0, -64),
    "evaluate.decoding.num_beams": (0, 5000),
    "evaluate.decoding.early_stopping": ("always", 1, None),
    "evaluate.decoding.top_p": (1.5,),
    "evaluate.decoding.compression": ("pool:", None, ("pool:2",)),
}
TOGETHER = [
    ({"profile_steps": (2, 9), "updates": 5}, "config.profile_steps ends at 9, beyond config.updates=5"),
    ({"data.augment.drop_audio": 0.6, "data.augment.drop_video": 0.6}, "sum to more than 1"),
    ({"data.augment.noise.probability": 0.5, "data.augment.noise.kinds": ()}, "kinds and snr_db are empty"),
    ({"mesh.data": -1, "mesh.fsdp": -1}, "more than one axis is -1"),
    ({"evaluate.decoding.min_new_tokens": 301}, "min_new_tokens is above max_new_tokens"),
    ({"data.weights": (1, 2)}, "config.data.weights are 2, expected none or one for each of the 1 of"),
    ({"optimizer.weight_decay": 0.1}, "weight_decay is for adamw"),
    ({"train.parts": ("encoder",)}, "train.parts is the encoder alone"),
    ({"checkpoint.best_by": "wer", "samples.clips": 0}, "best_by is wer, expected config.samples.clips"),
    ({"encoder.train": True, "data.row.frames": 4}, "frames is below clips"),
    (
        {"data.train": ("av_clean_max2",)},
        "holds 'av_clean_max2', a name for evaluation: expected 'av_clean', and config.data.compression=",
    ),
]


def given(config, name, value):
    """Sets a value of any type, as a config file of somebody's own may."""
    *sections, last = name.split(".")
    for section in sections:
        config = config[section]
    with config.ignore_type():
        config[last] = value


@pytest.mark.parametrize("config", [
    base.get_config(), demo.get_config(), demo_encoder.get_config(), final.get_config(), final.get_config("reference"),
    llama32.get_config(), qwen3.get_config(),
])  # fmt: skip
def test_our_own_configs_are_right(config):
    read_settings(config)
    assert flat(config).keys() == TABLE.keys()


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_wrong_value_is_named_with_what_was_expected(name, value):
    config = base.get_config()
    given(config, name, value)
    with pytest.raises(InputError) as caught:
        read_settings(config)
    assert str(caught.value) == f"config.{name} is {value!r}, expected {TABLE[name].expected}"


@pytest.mark.parametrize(("values", "message"), TOGETHER)
def test_values_that_do_not_go_together(values, message):
    config = base.get_config()
    for name, value in values.items():
        given(config, name, value)
    with pytest.raises(InputError, match=message):
        read_settings(config)


def test_all_mistakes_come_in_one_list():
    config = base.get_config()
    config.dtype, config.data.rows, config.optimizer.peaklr = "bf16", 0, 1e-3
    del config.checkpoint["keep"]
    with pytest.raises(InputError) as caught:
        read_settings(config)
    assert str(caught.value) == (
        "config.optimizer.peaklr is no setting, did you mean config.optimizer.peak_lr?; "
        "config.dtype is 'bf16', expected float32 or bfloat16; "
        "config.data.rows is 0, expected a whole number of at least 1, or -1 for what suits the devices; "
        "config.checkpoint.keep is missing, expected a whole number of at least 1"
    )


@pytest.mark.parametrize("value", [False, True, "never"])
def test_early_stopping_takes_all_that_transformers_does(value):
    config = base.get_config()
    config.evaluate.decoding.early_stopping = value
    read_settings(config)


def test_a_search_has_defaults():
    config = base.get_config()
    config.evaluate.decoding = {"max_new_tokens": 8}
    read_settings(config)
    config.evaluate.decoding = {"num_beams": 5}
    with pytest.raises(
        InputError, match="^config.evaluate.decoding.max_new_tokens is missing, expected a whole number"
    ):
        read_settings(config)


def test_changes_are_told_whatever_the_kind_of_sequence():
    before = {"seed": 0, "data": {"train": ["av_clean"], "rows": 2}, "updates": 3}
    now = {"seed": 0, "data": {"train": ("av_clean",), "rows": 4, "too_long": "skip"}, "updates": 5}
    assert settings.changes(before, now, ("seed", "data")) == [("data.rows", 2, 4)]


def test_a_saved_config_of_another_version_is_completed():
    saved = json.loads(base.get_config().to_json())
    del saved["data"]["too_long"], saved["encoder"]
    saved |= {"no_more": 1, "seed": 5}
    saved["evaluate"]["decoding"] = {"max_new_tokens": 8}
    found = settings.completed(saved)
    assert (found.data.too_long, found.encoder.train, found.seed) == ("error", False, 5) and "no_more" not in found
    assert read_settings(found).evaluation.decoding == DecodingConfig(8)
    assert settings.completed(found) == found
