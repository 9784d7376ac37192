"""What fairseq's trainer saves, made from a state of training: the content of a `checkpoint_best.pt`."""

from typing import Any

import jax
import ml_collections
import numpy as np
import optax
import torch

from convert.checkpoints import BUFFERS
from convert.names import Tensor, Tree, flatten, tensors
from viavsp_jax.data import media
from viavsp_jax.optimizer import make_optimizer
from viavsp_jax.state import TrainState

# Parameters of the reference's encoder that nothing trains, but that its optimizer counts.
PRETRAINED_ONLY = ("mask_emb", "label_embs_concat")


def container(
    state: TrainState,
    config: ml_collections.ConfigDict,
    accuracy: float,
    encoder: dict[str, torch.Tensor],
    paths: dict[str, str],
) -> dict[str, Any]:
    """The content of the file, plain values and float32 tensors.

    Args:
      state: numpy or JAX arrays.
      config: what it was trained with.
      accuracy: of the validation split, 0 to 1.
      encoder: weights by the reference's names; may be empty, and then so is the optimizer's state, which counts
        the encoder's parameters before the others.
      paths: settings of the reference that name files, `w2v_path` and `llm_ckpt_path`.
    """
    learnt = sorted(tensors(state.trainable), key=lambda tensor: tensor.reference_order)
    history = {
        "criterion_name": "decoder_only_language_modeling_loss",
        "optimizer_name": "FairseqAdam",
        "lr_scheduler_state": {"best": None},
        "num_updates": int(state.step),
    }
    percent = 100 * accuracy
    return {
        "args": None,
        "cfg": settings(config, paths),
        "model": encoder | in_torch(state.trainable, learnt),
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
        "last_optimizer_state": optimizer_state(state, config, learnt, encoder) if encoder else None,
    }


def in_torch(tree: Tree, wanted: list[Tensor]) -> dict[str, torch.Tensor]:
    """Learnt weights, or their moments, by the reference's names and in its orientation, float32."""
    flat = flatten(tree)

    def converted(tensor: Tensor) -> torch.Tensor:
        value = np.asarray(flat[tensor.path])[tensor.index]
        return torch.from_numpy(np.array(tensor.turned(value), np.float32, order="C"))

    return {tensor.reference_name: converted(tensor) for tensor in wanted}


def optimizer_state(
    state: TrainState, config: ml_collections.ConfigDict, learnt: list[Tensor], encoder: dict[str, torch.Tensor]
) -> dict[str, Any]:
    """The state_dict of fairseq's Adam: moments by the parameter's place, those of the encoder first, without any."""
    names = {name.rpartition(".")[2] for name in encoder}
    first = sum(name.rpartition(".")[2] not in BUFFERS for name in encoder)
    first += sum(name not in names for name in PRETRAINED_ONLY)
    is_adam = lambda part: isinstance(part, optax.ScaleByAdamState)  # noqa: E731
    (adam,) = filter(is_adam, jax.tree.leaves(state.opt_state, is_leaf=is_adam))
    exp_avg, exp_avg_sq = in_torch(adam.mu, learnt), in_torch(adam.nu, learnt)
    step, c = int(adam.count), config.optimizer
    group = {
        "lr": float(make_optimizer(config)[1](int(state.step))),
        "betas": (c.b1, c.b2),
        "eps": c.eps,
        "weight_decay": 0.0,
        "amsgrad": False,
        "params": list(range(first + len(learnt))),
    }
    states = {
        first + place: {"step": step, "exp_avg": exp_avg[name], "exp_avg_sq": exp_avg_sq[name]}
        for place, name in enumerate(exp_avg)
    }
    return {"state": states, "param_groups": [group]}


def settings(config: ml_collections.ConfigDict, paths: dict[str, str]) -> dict[str, Any]:
    """Our config under the reference's names; fairseq's defaults hold for what is not in it."""
    c = config.optimizer
    rate = [c.peak_lr]
    return {
        "_name": None,
        "common": {"_name": None, "seed": config.seed, "fp16": False},
        "optimization": {
            "_name": None, "max_update": config.updates, "lr": rate, "clip_norm": 0.0, "sentence_avg": True,
        },
        "checkpoint": {"_name": None, "best_checkpoint_metric": "accuracy", "maximize_best_checkpoint_metric": True},
        "model": {
            "_name": "avsp_llm", **paths, "normalize": True, "apply_mask": False, "w2v_args": None,
            "encoder_embed_dim": config.data.feature_width,
        },
        "task": {
            "_name": "avsp_llm_training", "llm_ckpt_path": paths["llm_ckpt_path"], "labels": ["wrd"],
            "label_rate": -1, "sample_rate": media.SAMPLE_RATE, "normalize": True, "pad_audio": True,
            "single_target": True, "stack_order_audio": media.STACKED_FRAMES, "image_crop_size": media.CROP_SIZE,
            "image_mean": media.VIDEO_MEAN, "image_std": media.VIDEO_STD, "modalities": ["video", "audio"],
            "is_s2s": True, "fine_tuning": True,
        },
        "criterion": {"_name": "decoder_only_language_modeling_loss"},
        "optimizer": {
            "_name": "adam", "adam_betas": f"({c.b1},{c.b2})", "adam_eps": c.eps, "weight_decay": 0.0, "lr": rate,
        },
        "lr_scheduler": {
            "_name": "tri_stage", "warmup_steps": c.warmup_updates, "hold_steps": c.hold_updates,
            "decay_steps": c.decay_updates, "phase_ratio": None, "init_lr_scale": 0.01, "final_lr_scale": 0.05,
            "max_update": config.updates, "lr": rate,
        },
    }  # fmt: skip
