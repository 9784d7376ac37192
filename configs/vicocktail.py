"""ViCocktail, an open corpus of Vietnamese speakers, with the encoder trained too, on a TPU v5e:2x4.

    scripts/vicocktail.sh download data/vicocktail
    scripts/vicocktail.sh prepare data/vicocktail
    scripts/vicocktail.sh train data/vicocktail
    scripts/vicocktail.sh evaluate data/vicocktail

What is not said here is as in configs/base.py. docs/vicocktail.md has what it takes and how long.

Clips: 0.6 to 15 s, 5.3 s on average. A row has room for 8 of them, of 15 s each; 8 rows make an update of 64 clips,
with less gradient noise than the reference's 8. A window holds the longest clip if two thirds of its frames are left
after dedup, as at most in VASR, and the 90 tokens of its text; longer ones are left out and listed.

Noise: as the corpus's authors do, one or two others of the corpus speak into half of the clips, at -5 to 20 dB. Now
and then sound or video is missing, or a part of the video.

On 8 chips of 15.75 GiB an update takes 427 ms and 63.0 % of the memory, decoding 95.7 %, by the compiler's estimates
(jax 0.10.2, libtpu 0.0.42.1). Nobody has trained it yet: rates and lengths are the reference's.
"""

import ml_collections

from configs import base

CONDITIONS = ("clean", *(f"snr_{snr}_interferer_{count}" for count in (1, 2) for snr in (-5, 0, 5, 10)))
LONGEST = 375  # frames, 15 s


def get_config() -> ml_collections.ConfigDict:
    """The settings."""
    config = base.get_config()
    config.updates = 40_000
    config.encoder.train = True
    config.encoder.freeze_updates = 1 / 30
    config.data.augment.noise.probability = 0.5
    config.data.augment.noise.talkers = (1, 2)
    config.data.augment.noise.snr_db = (-5.0, 0.0, 5.0, 10.0, 15.0, 20.0)
    config.data.augment.drop_audio = 0.1
    config.data.augment.drop_video = 0.1
    config.data.augment.drop_frames = {"spans": 2, "frames": 25}
    config.data.rows, config.device_rows = -1, 1
    config.data.row = {"positions": 1152, "frames": 8 * LONGEST, "labels": 384, "clips": 8, "window": 384}
    config.data.seconds = {"mean": 5.3, "longest": LONGEST / 25}
    config.data.too_long = "skip"
    # The reference's shares.
    config.optimizer.warmup_updates, config.optimizer.decay_updates = 1 / 3, 2 / 3
    names = [f"{modality}_{condition}" for condition in CONDITIONS for modality in ("av", "audio")]
    config.evaluate.names = (*names, "video_clean", "av_lost25", "av_lost50")
    config.evaluate.rows = -1
    return config
