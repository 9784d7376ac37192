"""What fairseq's trainer saves, made from a state of training: the content of a `checkpoint_best.pt`."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import torch

from convert.avhubert import to_torch_names
from convert.checkpoints import BUFFERS
from convert.names import REFERENCE_ENCODER, Tensor, Tree, encoder_order, in_their_layout, reference_order, tensors
from convert.work_folder import adapters
from viavsp_jax.data.features import CROP_SIZE, SAMPLE_RATE, STACKED_FRAMES, VIDEO_MEAN, VIDEO_STD
from viavsp_jax.optimizer import OptimizerSettings, make_optimizer
from viavsp_jax.run_settings import Settings
from viavsp_jax.state import TrainState

# Parameters of the reference's encoder that nothing trains, but that its optimizer counts.
PRETRAINED_ONLY = ("mask_emb", "label_embs_concat")


def container(
    state: TrainState, settings: Settings, accuracy: float, encoder: dict[str, torch.Tensor], paths: dict[str, str]
) -> dict[str, Any]:
    """The content of the file, plain values and float32 tensors.

    Args:
      state: numpy or JAX arrays.
      settings: what it was trained with.
      accuracy: of the validation split, 0 to 1.
      encoder: weights by the reference's names and in its order; may be empty, and then so is the optimizer's state,
        which counts the encoder's parameters before the others.
      paths: settings of the reference that name files, `w2v_path` and `llm_ckpt_path`.
    """
    trained = sorted(tensors(adapters(state.trainable)), key=reference_order)
    history = {
        "criterion_name": "decoder_only_language_modeling_loss",
        "optimizer_name": "FairseqAdam",
        "lr_scheduler_state": {"best": None},
        "num_updates": int(state.step),
    }
    percent = 100 * accuracy
    return {
        "args": None,
        "cfg": reference_config(settings, paths),
        "model": encoder | in_torch(state.trainable, trained),
        "criterion": None,
        "optimizer_history": [history],
        "task_state": {},
        "extra_state": {
            "metrics": {},
            "previous_training_time": 0.0,
            "train_iterator": {"version": 2, "epoch": 1, "iterations_in_epoch": 0, "shuffle": True},
            "val_loss": percent,
            "best": percent,
        },
        "last_optimizer_state": optimizer_state(state, settings.optimizer, trained, encoder) if encoder else None,
    }


def in_torch(tree: Tree, wanted: list[Tensor]) -> dict[str, torch.Tensor]:
    """Learnt weights, or their moments, by the reference's names and in its orientation, float32."""
    return {
        tensor.reference_name: torch.from_numpy(np.array(value, np.float32))
        for tensor, value in in_their_layout(tree, wanted)
    }


def encoder_in_torch(weights: Tree) -> dict[str, torch.Tensor]:
    """A trained encoder's weights, or their moments, by the reference's names."""
    return {REFERENCE_ENCODER + name: as_tensor(value) for name, value in to_torch_names(weights).items()}


def as_tensor(value: np.ndarray) -> torch.Tensor:
    """The same memory where it can be: PyTorch warns of arrays that it cannot write to."""
    return torch.from_numpy(np.require(value, requirements="W"))


def optimizer_state(
    state: TrainState, settings: OptimizerSettings, trained: list[Tensor], encoder: dict[str, torch.Tensor]
) -> dict[str, Any]:
    """The state_dict of fairseq's Adam: moments by the parameter's place, the encoder's first.

    An encoder that was not trained yet, or never is, has places but no moments.
    """
    names = {name.removeprefix(REFERENCE_ENCODER) for name in encoder} | {*PRETRAINED_ONLY}
    parameters = [
        REFERENCE_ENCODER + name for name in sorted(names, key=encoder_order) if name.split(".")[-1] not in BUFFERS
    ]
    parameters += [tensor.reference_name for tensor in trained]
    entries = {}
    if settings.train_encoder:
        late = adam_state(state.opt_state.inner_states["encoder"])
        if late.count:
            entries = adam_entries(late, lambda moments: encoder_in_torch(moments["encoder"]))
        others = adam_state(state.opt_state.inner_states["others"])
    else:
        others = adam_state(state.opt_state)
    entries |= adam_entries(others, lambda moments: in_torch(moments, trained))
    group = {
        "lr": float(make_optimizer(settings)[1](int(state.step))),
        "betas": (settings.b1, settings.b2),
        "eps": settings.eps,
        "weight_decay": 0.0,
        "amsgrad": False,
        "params": list(range(len(parameters))),
    }
    states = {place: entries[name] for place, name in enumerate(parameters) if name in entries}
    return {"state": states, "param_groups": [group]}


def adam_state(opt_state: optax.OptState) -> optax.ScaleByAdamState:
    """Adam's state of one part of what is trained."""
    is_adam = lambda part: isinstance(part, optax.ScaleByAdamState)  # noqa: E731
    (adam,) = filter(is_adam, jax.tree.leaves(opt_state, is_leaf=is_adam))
    return adam


def adam_entries(
    adam: optax.ScaleByAdamState, in_torch: Callable[[Tree], dict[str, torch.Tensor]]
) -> dict[str, dict[str, Any]]:
    """fairseq's state of every parameter that Adam's is about, by name."""
    exp_avg, exp_avg_sq = in_torch(adam.mu), in_torch(adam.nu)
    step = int(adam.count)
    return {name: {"step": step, "exp_avg": exp_avg[name], "exp_avg_sq": exp_avg_sq[name]} for name in exp_avg}


def reference_config(settings: Settings, paths: dict[str, str]) -> dict[str, Any]:
    """Our settings under the reference's names; fairseq's defaults hold for what is not in them."""
    c, updates = settings.optimizer, settings.training.updates
    rate, training = [c.peak_lr], {}
    if settings.encoder.train:
        training = {
            "freeze_finetune_updates": c.freeze_updates, "layerdrop": settings.encoder.layer_drop,
            "activation_dropout": settings.encoder.activation_dropout,
        }  # fmt: skip
    return {
        "_name": None,
        "common": {"_name": None, "seed": settings.training.seed, "fp16": False},
        "optimization": {
            "_name": None, "max_update": updates, "lr": rate, "clip_norm": 0.0, "sentence_avg": True,
        },
        "checkpoint": {"_name": None, "best_checkpoint_metric": "accuracy", "maximize_best_checkpoint_metric": True},
        "model": {
            "_name": "avsp_llm", **paths, "normalize": True, "apply_mask": False, "w2v_args": None,
            "encoder_embed_dim": settings.data.feature_width, **training,
        },
        "task": {
            "_name": "avsp_llm_training", "llm_ckpt_path": paths["llm_ckpt_path"], "labels": ["wrd"],
            "label_rate": -1, "sample_rate": SAMPLE_RATE, "normalize": True, "pad_audio": True,
            "single_target": True, "stack_order_audio": STACKED_FRAMES, "image_crop_size": CROP_SIZE,
            "image_mean": VIDEO_MEAN, "image_std": VIDEO_STD, "modalities": ["video", "audio"],
            "is_s2s": True, "fine_tuning": True,
        },
        "criterion": {"_name": "decoder_only_language_modeling_loss"},
        "optimizer": {
            "_name": "adam", "adam_betas": f"({c.b1},{c.b2})", "adam_eps": c.eps, "weight_decay": 0.0, "lr": rate,
        },
        "lr_scheduler": {
            "_name": "tri_stage", "warmup_steps": c.warmup_updates, "hold_steps": c.hold_updates,
            "decay_steps": c.decay_updates, "phase_ratio": None, "init_lr_scale": 0.01, "final_lr_scale": 0.05,
            "max_update": updates, "lr": rate,
        },
    }  # fmt: skip
