"""Makes the demo's encoder: a 1 M-parameter AV-HuBERT in this project's format.

    python scripts/pretrain_demo_encoder.py --output viavsp_jax/demo_models/avhubert

It learns to name the phoneme and the tone of every frame of clips that the demo corpus does not hold: the sentences are
kept for pre-training, validation and test speakers do not occur. A batch shows audio and video, audio alone or video
alone (modality dropout), and half of the audio has babble or white noise added. The two classifiers are thrown away.
The shipped weights took 35 minutes on one of two busy CPU cores.
"""

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from viavsp_jax.data import media, noise
from viavsp_jax.data.features import CENTER, CROP_SIZE, audio_features, normalize, video_input
from viavsp_jax.models.avhubert.config import AVHubertConfig
from viavsp_jax.prepare.demo.corpus import PHONEMES, synthesize_clips
from viavsp_jax.prepare.features.avhubert_torch import AVHubert, save_encoder
from viavsp_jax.runtime.errors import reported_to_user

CONFIG = AVHubertConfig(
    embed_dim=128, num_layers=4, num_heads=4, ffn_dim=512, frontend_channels=8, resnet_channels=(8, 16, 32, 64),
    conv_pos=32, conv_pos_groups=8,
)  # fmt: skip
NUM_TONES = 7
IGNORED = -100


@dataclasses.dataclass(frozen=True)
class Example:
    """One clip: uint8[T, 96, 96] grey frames, int16[640 T] samples, int64[T, 2] phoneme and tone."""

    frames: np.ndarray
    samples: np.ndarray
    labels: np.ndarray


def make_examples(seed: int, count: int) -> list[Example]:
    """Synthesizes clips of the pre-training split."""
    examples = []
    for clip in tqdm(synthesize_clips(seed, count, "pretrain", workers=2), total=count, unit="clip"):
        frames = np.stack([cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY) for frame in clip.frames])
        labels = np.stack([clip.phoneme_labels, clip.tone_labels], 1).astype(np.int64)
        examples.append(Example(frames, clip.samples, labels))
    return examples


def noisy(samples: np.ndarray, examples: list[Example], rng: np.random.Generator) -> np.ndarray:
    """Half of the clips as they are, a third with babble, a sixth with white noise, at -5 to 15 dB."""
    kind = rng.choice(3, p=(1 / 2, 1 / 3, 1 / 6))
    if kind == 0:
        return samples
    if kind == 1:
        others = [examples[i].samples for i in rng.integers(len(examples), size=rng.integers(3, 8))]
        added = noise.babble(others, len(samples), rng)
    else:
        added = rng.normal(0, 1000, len(samples)).astype(np.int16)
    return noise.mix(samples, added, rng.uniform(-5, 15))


def cropped(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random 88×88 crop, the same for all frames, flipped half of the time, normalised: float32[T, 88, 88]."""
    top, left = rng.integers(2 * CENTER + 1, size=2)
    return normalize(media.crop(frames, top, left, flip=rng.random() < 0.5))


def batches(
    examples: list[Example], size: int, seed: int
) -> Iterator[tuple[Tensor | None, Tensor | None, Tensor, Tensor]]:
    """Endless (audio [B, T, 104] or None, video [B, T, 88, 88] or None, padding bool[B, T], labels [B, T, 2])."""
    rng = np.random.default_rng(seed)
    while True:
        kind = rng.choice(["both", "audio", "video"], p=(0.4, 0.25, 0.35))
        group = [examples[i] for i in rng.integers(len(examples), size=size)]
        length = max(len(example.labels) for example in group)
        audio = np.zeros((size, length, CONFIG.audio_dim), np.float32) if kind != "video" else None
        video = np.zeros((size, length, CROP_SIZE, CROP_SIZE), np.float32) if kind != "audio" else None
        labels = np.full((size, length, 2), IGNORED)
        for row, example in enumerate(group):
            frames = len(example.labels)
            labels[row, :frames] = example.labels
            if audio is not None:
                audio[row, :frames] = audio_features(noisy(example.samples, examples, rng), frames)
            if video is not None:
                video[row, :frames] = cropped(example.frames, rng)
        labels = torch.from_numpy(labels)
        audio, video = (None if x is None else torch.from_numpy(x) for x in (audio, video))
        yield audio, video, labels[..., 0] == IGNORED, labels


def frame_logits(encoder: AVHubert, classifier: nn.Linear, audio, video, padding: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of phonemes [B, T, P] and tones [B, T, 7]."""
    audio = None if audio is None else encoder.audio_features(audio)
    video = None if video is None else encoder.video_features(video)
    logits = classifier(encoder.encode(audio, video, padding)[1])
    return logits[..., :-NUM_TONES], logits[..., -NUM_TONES:]


def loss_of(encoder: AVHubert, classifier: nn.Linear, batch) -> Tensor:
    """Cross-entropy of phonemes, and half as much of tones."""
    *inputs, labels = batch
    phonemes, tones = frame_logits(encoder, classifier, *inputs)
    return F.cross_entropy(phonemes.flatten(0, 1), labels[..., 0].flatten(), ignore_index=IGNORED) + 0.5 * (
        F.cross_entropy(tones.flatten(0, 1), labels[..., 1].flatten(), ignore_index=IGNORED)
    )


@torch.no_grad()
def accuracies(encoder: AVHubert, classifier: nn.Linear, examples: list[Example]) -> dict[str, float]:
    """Frame accuracy of phonemes and tones on clean clips, by modality."""
    encoder.eval()
    right: dict[str, list[float]] = {}
    for example in examples:
        audio = torch.from_numpy(audio_features(example.samples, len(example.labels)))[None]
        video = torch.from_numpy(video_input(example.frames))[None]
        padding = torch.zeros(audio.shape[:2], dtype=torch.bool)
        for name, a, v in (("both", audio, video), ("audio", audio, None), ("video", None, video)):
            logits = frame_logits(encoder, classifier, a, v, padding)
            for index, what in enumerate(("phoneme", "tone")):
                correct = logits[index][0].argmax(-1).numpy() == example.labels[:, index]
                right.setdefault(f"{name} {what}", []).append(correct.mean())
    encoder.train()
    return {name: float(np.mean(values)) for name, values in right.items()}


@reported_to_user()
def main() -> None:
    """Trains and writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for config.json and model.safetensors")
    parser.add_argument("--clips", type=int, default=2500)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    held_out = make_examples(args.seed + 1, 32)
    examples = make_examples(args.seed, args.clips)
    encoder = AVHubert(CONFIG)
    classifier = nn.Linear(CONFIG.embed_dim, len(PHONEMES) + NUM_TONES)
    parameters = [*encoder.parameters(), *classifier.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=args.steps, pct_start=0.1)
    stream = batches(examples, args.batch_size, args.seed)
    with tqdm(range(args.steps), unit="step") as bar:
        for step in bar:
            loss = loss_of(encoder, classifier, next(stream))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            if step % 20 == 0:
                bar.set_postfix(loss=f"{loss.item():.3f}")
            if step % 200 == 199 or step + 1 == args.steps:
                scores = accuracies(encoder, classifier, held_out)
                bar.write(", ".join(f"{name} {value:.3f}" for name, value in scores.items()))
    encoder.eval()
    save_encoder(encoder, args.output, torch.float16)


if __name__ == "__main__":
    main()
