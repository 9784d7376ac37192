"""Whether the lengths of a run go together."""

from viavsp_jax.run_settings import Settings


def warnings(settings: Settings) -> list[str]:
    """What may be a mistake, a sentence each."""
    optimizer, training = settings.optimizer, settings.training
    updates, told = training.updates, []
    warmup, whole = optimizer.warmup_updates, schedule_updates(settings)
    if warmup >= updates:
        told.append(
            f"the warm-up takes {warmup:,} of {updates:,} updates, so the rate never gets to "
            f"{optimizer.peak_lr:g}: lower config.optimizer.warmup_updates"
        )
    elif optimizer.schedule == "constant":
        pass
    elif whole > updates:
        told.append(
            f"warm-up, hold and decay take {whole:,} updates, the run has {updates:,} and ends before the rate has "
            "come down: make config.optimizer.decay_updates shorter or config.updates larger"
        )
    elif whole < updates:
        told.append(
            f"warm-up, hold and decay take {whole:,} of {updates:,} updates, the others have the lowest rate: make "
            "config.optimizer.decay_updates longer or config.updates smaller"
        )
    if settings.encoder.train and optimizer.freeze_updates >= updates:
        told.append(
            f"the encoder stays frozen for {optimizer.freeze_updates:,} updates and the run has {updates:,}, so it is "
            "never trained: lower config.encoder.freeze_updates, or set config.encoder.train=False and use features, "
            "which is faster"
        )
    if settings.encoder.train and "encoder" not in optimizer.parts:
        told.append(
            "config.train.parts leaves the encoder out, so it runs in every update and never learns: features of it "
            "are faster (config.encoder.train=False)"
        )
    elif optimizer.parts == ("encoder",) and optimizer.freeze_updates:
        told.append(
            f"nothing learns in the first {optimizer.freeze_updates:,} updates, as config.train.parts is the encoder "
            "alone: set config.encoder.freeze_updates=0"
        )
    augment = settings.data.augment
    if not settings.encoder.train and (
        augment.noise_probability
        or augment.drop_audio
        or augment.drop_video
        or augment.mask.times
        or augment.mask.ranges
    ):
        told.append("config.data.augment is for clips and does nothing to features: expected config.encoder.train=True")
    if training.checkpoint_every > updates:
        told.append(
            f"a checkpoint is made every {training.checkpoint_every:,} updates and the run has {updates:,}, so only "
            "the last one is saved and validated: lower config.checkpoint.every"
        )
    if training.log_every > updates:
        told.append(f"config.log_every={training.log_every:,} is above config.updates={updates:,}: nothing is logged")
    return told


def schedule_updates(settings: Settings) -> int:
    """The updates that warm-up, hold and decay take."""
    c = settings.optimizer
    return c.warmup_updates + c.hold_updates + c.decay_updates
