"""What a step of training or decoding runs, and how much of its work is useful on clips as long as the corpus's."""

import dataclasses
import itertools
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from viavsp_jax import sharding, update
from viavsp_jax.aot import flops
from viavsp_jax.aot.typical_clips import TypicalPrompt, draw_clips, draw_frames
from viavsp_jax.data import packing, pipeline
from viavsp_jax.data.features import CROP_SIZE, FRAME_RATE
from viavsp_jax.data.packer import OPEN_ROWS
from viavsp_jax.data.settings import DataSettings
from viavsp_jax.decoding.decoder import Decoder
from viavsp_jax.experiment import Experiment
from viavsp_jax.models.avhubert.config import AVHubertConfig
from viavsp_jax.models.avhubert.encoder import AVHubert
from viavsp_jax.optimizer import learning, make_optimizer
from viavsp_jax.runtime.errors import InputError

TEST_CLIPS = 12_800  # to decode: 1 % of VASR
SIMULATED_ROWS = 64


@dataclasses.dataclass(frozen=True)
class Program:
    """One of those that a step runs."""

    traced: jax.stages.Traced
    runs: int = 1  # of a loop whose end depends on data
    resident: int = 0  # bytes on each device that it does not take but has to leave room for
    timed: bool = True  # False: it shows what memory the worst case takes


@dataclasses.dataclass(frozen=True)
class Work:
    """What is done in a step, and how many steps make the whole."""

    steps: int
    clips_per_step: float
    flops: int
    useful_flops: float
    bytes_read: int  # by each device from its memory, of weights and what decoding remembers alone
    facts: dict[str, float]  # that the numbers rest on


def training(experiment: Experiment) -> tuple[list[Program], Work]:
    """The update, on rows packed from typical clips."""
    data, updates = experiment.settings.data, experiment.settings.training.updates
    sharding.check_rows(experiment.mesh, data.rows, "config.data.rows")
    optimizer, _ = make_optimizer(experiment.settings.optimizer)
    width = None if data.of_clips else data.feature_width
    batch = on_rows(
        experiment, data.rows, packing.empty_row(data.row, width, np.dtype(data.dtype), _longest(experiment))
    )
    state = update.abstract_state(experiment, optimizer)
    # The update of most of the run, which takes the most memory too.
    step = update.jit_train_step(experiment, optimizer, learning(experiment.settings.optimizer, updates))
    traced = step.trace(state, experiment.frozen, batch)
    texts = pack(data)
    share = data.rows / SIMULATED_ROWS
    clips = share * sum(labels > 0 for _, labels in texts)
    work = Work(
        steps=updates,
        clips_per_step=clips,
        flops=flops.of_program(traced.jaxpr.jaxpr),
        useful_flops=share * flops.useful_in_training(experiment.model.llama, texts)
        + 3 * clips * encoder_flops(experiment.model.encoder, mean_frames(data)),
        bytes_read=2 * bytes_per_device(experiment.frozen),  # forward and backward
        facts={
            "clips_seen": round(clips * updates),
            "real_positions": sum(len(positions) for positions, _ in texts) / SIMULATED_ROWS / data.row.positions,
            "real_label_places": sum(labels for _, labels in texts) / SIMULATED_ROWS / data.row.labels,
        },
    )
    return [Program(traced)], work


def _longest(experiment: Experiment) -> int:
    """Frames of a clip in the rows of a CTC head; 0 without one."""
    data = experiment.settings.data
    longest = data.row.clip_frames if data.of_clips else round(data.seconds.longest * FRAME_RATE)
    return 0 if experiment.model.ctc is None else longest


def mean_frames(data: DataSettings) -> int:
    """Of a typical clip."""
    return round(draw_frames(SIMULATED_ROWS * data.row.clips, data.seconds).mean())


def encoder_flops(encoder: AVHubertConfig | None, frames: int) -> int:
    """Of the forward pass over one audio-visual clip of so many frames; 0 without an encoder."""
    if encoder is None:
        return 0
    graph, params = nnx.split(nnx.eval_shape(lambda: AVHubert(encoder, dtype=jnp.float32, rngs=nnx.Rngs(0))))

    def encode(params, audio, video):
        model = nnx.merge(graph, params)
        return model.encode(model.audio_features(audio), model.video_features(video))[1]

    shapes = (1, frames, encoder.audio_dim), (1, frames, CROP_SIZE, CROP_SIZE)
    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return flops.of_program(jax.make_jaxpr(encode)(params, *inputs).jaxpr)


def pack(data: DataSettings) -> list[tuple[range, int]]:
    """Positions and label tokens of SIMULATED_ROWS rows of typical clips, by the pipeline's own packer.

    Of the instruction of each row, which has no label, then of its utterances. Clips that fit no row are left out.
    """
    clips = draw_clips((SIMULATED_ROWS + OPEN_ROWS) * data.row.clips, data.seconds, data.compression)
    fitting = [clip for clip in clips if not data.row.too_small(*_sizes(clip), data.of_clips)]
    if not fitting:
        raise InputError(
            f"config.data.row holds no clip of {data.seconds.mean:g} s, the mean of config.data.seconds, expected "
            "larger rows or shorter clips"
        )
    to_utterance = packing.ToUtterance(TypicalPrompt(), data.row, np.dtype(data.dtype))
    (stream,) = pipeline.row_streams(grain.MapDataset.source(fitting), to_utterance, 1, [0])
    texts = []
    for row in itertools.islice(stream, SIMULATED_ROWS):
        texts += flops.texts_of(*(row[name] for name in flops.OF_TEXTS))
    return texts


def _sizes(clip: packing.Arrays) -> tuple[int, int, int]:
    """Frames, positions and label tokens of a clip in a row."""
    prompt = TypicalPrompt()
    label = len(prompt.label(clip["transcript"]))
    return len(clip["features"]), len(packing.speech_prompt(clip, prompt)["tokens"]) + label - 1, label


def decoding(experiment: Experiment) -> tuple[list[Program], Work]:
    """Batches of prompts: of the longest clip, with a cache that holds all that beams may remember, for the memory; and
    of a clip of middle length, for the time, with a search that ends with the longest label of its batch.
    """
    settings, data, prompt = experiment.settings.evaluation, experiment.settings.data_to_decode, TypicalPrompt()
    sharding.check_rows(experiment.mesh, settings.rows, "config.evaluate.rows")
    decoder = Decoder(experiment.mesh, experiment.structure, settings.decoding, prompt.end_ids)
    clips = draw_clips(SIMULATED_ROWS * settings.rows, data.seconds, data.compression)
    clips.sort(key=lambda clip: len(clip["features"]))
    prompts = [packing.speech_prompt(clip, prompt) for clip in clips]
    labels = [len(prompt.label(clip["transcript"])) for clip in clips]
    weights = experiment.trainable, experiment.frozen | experiment.batch_stats
    longest = np.array(labels).reshape(-1, settings.rows).max(1)
    read = round(min(longest.mean(), decoder.config.max_new_tokens)) - 1
    batch = on_rows(experiment, settings.rows, _typical_prompt(data, settings.bucket, prompts))
    largest = on_rows(experiment, settings.rows, longest_prompt(data, settings.bucket, prompts))
    prefill = decoder.prefill.trace(*weights, batch)
    programs = [Program(prefill), *_largest_programs(decoder, weights, largest, read)]
    if shapes_of(largest) != shapes_of(batch):
        programs.append(Program(decoder.prefill.trace(*weights, largest), timed=False))
    state, cache = decoder.largest(*weights, batch)
    capacity = next((capacity for capacity in decoder.capacities if capacity >= read), decoder.capacities[-1])
    remembered = _with_capacity(decoder, cache, capacity)
    search = decoder.search.trace(*weights, state, remembered)
    programs.append(Program(search, read))
    lengths = [(len(prompt["tokens"]), label) for prompt, label in zip(prompts, labels, strict=True)]
    beams = decoder.config.num_beams
    work = Work(
        steps=-(-TEST_CLIPS // settings.rows),
        clips_per_step=settings.rows,
        flops=flops.of_program(prefill.jaxpr.jaxpr) + flops.of_program(search.jaxpr.jaxpr, read),
        useful_flops=flops.useful_in_decoding(experiment.model.llama, lengths, beams) / SIMULATED_ROWS
        + settings.rows * encoder_flops(experiment.model.encoder, mean_frames(data)),
        bytes_read=bytes_per_device(weights) + read * bytes_per_device((weights, remembered)),
        facts={
            "clips": TEST_CLIPS,
            "prompt_positions": batch["tokens"].shape[1],
            "largest_prompt_positions": largest["tokens"].shape[1],
            "tokens_read": read,
            "cache_tokens": capacity,
            "largest_cache_tokens": decoder.capacities[-1],
        },
    )
    return programs, work


def _largest_programs(decoder: Decoder, weights: tuple, batch: dict, read: int) -> list[Program]:
    """Of a search whose beams remember all they may."""
    state, cache = decoder.largest(*weights, batch)
    programs = [Program(decoder.search.trace(*weights, state, cache), read, timed=False)]
    if len(decoder.capacities) > 1:
        before = _with_capacity(decoder, cache, decoder.capacities[-2])
        growing = decoder.compact.trace(before, capacity=decoder.capacities[-1])
        programs.append(Program(growing, resident=bytes_per_device((*weights, state)), timed=False))
    return programs


def _with_capacity(decoder: Decoder, cache: Any, capacity: int) -> Any:
    smaller = decoder.compact.eval_shape(cache, capacity=capacity)
    return sharding.with_sharding(smaller, jax.tree.map(lambda x: x.sharding, cache))


def _typical_prompt(data: DataSettings, bucket: int, prompts: list[packing.Arrays]) -> packing.Arrays:
    """A row for the prompts that have about as many frames as the one in the middle; they come in that order."""
    buckets = [-(-len(prompt["frame_slot"]) // bucket) for prompt in prompts]
    middle = buckets[len(buckets) // 2]
    return longest_prompt(data, bucket, [x for x, own in zip(prompts, buckets, strict=True) if own == middle])


def longest_prompt(data: DataSettings, bucket: int, prompts: list[packing.Arrays]) -> packing.Arrays:
    """A row of a decoding batch of the largest size that these prompts need, empty."""
    frames, positions = (
        -(-max(len(prompt[name]) for prompt in prompts) // bucket) * bucket for name in ("frame_slot", "tokens")
    )
    if data.of_clips:
        speech = packing.empty_clips(1, frames) | {"frame_slot": np.zeros((1, frames), np.int32)}
    else:
        features = np.zeros((frames, data.feature_width), np.dtype(data.dtype))
        speech = {"features": features, "frame_slot": np.zeros(frames, np.int32)}
    return {
        **speech,
        "tokens": np.zeros(positions, np.int32),
        "is_speech": np.zeros(positions, bool),
        "lengths": np.int32(0),
        "stream": np.uint32(0),
    }


def shapes_of(batch: dict[str, jax.ShapeDtypeStruct]) -> dict[str, tuple[int, ...]]:
    """By name."""
    return {name: x.shape for name, x in batch.items()}


def on_rows(experiment: Experiment, rows: int, row: packing.Arrays) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of such rows, as shapes."""
    by_rows = sharding.rows(experiment.mesh)
    return {name: jax.ShapeDtypeStruct((rows, *x.shape), x.dtype, sharding=by_rows) for name, x in row.items()}


def bytes_per_device(tree: Any) -> int:
    """Of shapes with shardings."""
    return sum(int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize for x in jax.tree.leaves(tree))
