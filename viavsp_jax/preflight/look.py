"""The checks of a set-up: everything that can be known before the first update, in one list."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
from etils import epath
from jax.sharding import Mesh
from tqdm import tqdm

from convert.avhubert import check_flax
from viavsp_jax import experiment as models_of
from viavsp_jax import llm_folder, run_settings, settings, sharding
from viavsp_jax.data.ids import read_channels
from viavsp_jax.data.packing import ClipUnits
from viavsp_jax.data.pipeline import from_all
from viavsp_jax.data.prompt import Prompt, load_prompt
from viavsp_jax.data.settings import DataSettings
from viavsp_jax.data.sources import LeftOut, open_sources
from viavsp_jax.evaluation.report.results import RESERVED
from viavsp_jax.experiment import Experiment
from viavsp_jax.initial import open_source
from viavsp_jax.preflight import schedule
from viavsp_jax.preflight import workdir as places
from viavsp_jax.preflight.corpus import look_at_corpus
from viavsp_jax.preflight.findings import UNKNOWN, Findings
from viavsp_jax.run_settings import LanguageModelSettings, Settings
from viavsp_jax.runtime.errors import InputError, InputErrors
from viavsp_jax.runtime.run_info import flat
from viavsp_jax.runtime.tensorboard import find_trackers

_ROWS = ("data.rows", "data.row", "device_rows", "evaluate.rows")


@dataclasses.dataclass(frozen=True)
class Ready:
    """What was read on the way, for training to go on with."""

    experiment: Experiment
    left_out: LeftOut
    clip_units: ClipUnits | None  # None without a CTC head


def before_training(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> Ready:
    """Looks at everything and says the warnings. Raises InputErrors that lists all faults; every process has to ask."""
    found, ready = look(config, workdir)
    if jax.process_index() == 0:
        for one in found.warnings:
            tqdm.write(f"warning: {one}", file=sys.stderr)
    if found.faults and jax.process_index():
        raise InputError("the set-up has faults, which the first process lists")
    if found.faults:
        raise InputErrors(found.faults)
    return ready


def look(
    config: ml_collections.ConfigDict, workdir: epath.PathLike, devices: Sequence[jax.Device] | None = None
) -> tuple[Findings, Ready]:
    """All checks, for these devices or, by default, those that are there.

    What there is to go on with is UNKNOWN, as a whole or in parts, where there are faults.
    """
    mended, wrong = settings.mended(config)
    found = Findings(wrong)
    found.ask("settings", settings.check, config)
    c = run_settings.parts_of(mended)
    if not wrong:
        found.fact("settings", f"{len(flat(config))}, all of them right")
    folder = found.ask("work folder", places.check_folder, workdir)
    conversion, llama, prompt = _look_at_language_model(found, c)
    encoder = found.ask("encoder", models_of.load_encoder_config, c, settings=("encoder", "data.feature_width"))
    mesh = _look_at_mesh(found, c, devices)
    c, whole = _follow_devices(found, c, mesh, prompt)
    _look_at_rows(found, c, mesh)
    left_out, clip_units = look_at_corpus(found, c.data, prompt, folder, whole, c.ctc, c.training.init_from)
    experiment = found.ask(
        "model", models_of.assembled, mended, c, conversion, llama, prompt, encoder, mesh,
        settings=("lora", "llm", "prompt", "encoder", "ctc", "data.row", "data.feature_width", "dtype", "remat"),
    )  # fmt: skip
    found.ask("trackers", find_trackers, c.training.trackers, settings=("trackers",))
    found.ask("weights of the language model", Experiment.check_frozen, experiment)
    if c.encoder.train:
        found.ask("weights of the encoder", check_flax, c.encoder.path, encoder)
    _look_at_schedule(found, c)
    clips = _look_at_evaluation(found, c, mesh)
    _look_at_work(found, c, folder, experiment, clips)
    _share(found)
    return found, Ready(experiment, left_out, clip_units)


def _existing(llm: LanguageModelSettings) -> str:
    """The folder of the language model, if there is any."""
    path = models_of.llm_path(llm)
    if not epath.Path(path).exists():
        llm_folder.llama_config(path)  # which says so
    return path


def _look_at_language_model(found: Findings, c: Settings) -> tuple[Any, Any, Prompt]:
    """Its conversion, its sizes and the prompt, each by itself."""
    path = found.ask("language model", _existing, c.llm, settings=("llm.path",))
    llama = found.ask("sizes of the language model", llm_folder.llama_config, path)
    conversion = found.ask("conversion of the language model", llm_folder.read_conversion, path)
    prompt = found.ask(
        "tokenizer", load_prompt, path, c.llm.end_token, c.prompt, settings=("llm.end_token", "prompt")
    )  # fmt: skip
    size = UNKNOWN if llama is UNKNOWN else llama.vocab_size
    if found.ask("tokens of the language model", _fitting, prompt, size) is UNKNOWN:
        return conversion, llama, prompt
    if conversion is not UNKNOWN:
        found.fact("language model", (
            f"{llama.num_layers} layers of width {llama.hidden_size}, {conversion['dtype']}, from {path}"
        ))  # fmt: skip
    found.fact("tokenizer", f"{len(prompt.tokenizer):,} tokens, texts end with {prompt.end_token}")
    return conversion, llama, prompt


def _fitting(prompt: Prompt, vocab_size: int) -> Prompt:
    prompt.check_fits(vocab_size)
    return prompt


def _look_at_mesh(found: Findings, c: Settings, devices: Sequence[jax.Device] | None) -> Mesh:
    mesh = found.ask("mesh", sharding.make_mesh, c.mesh, devices, settings=("mesh",))
    if mesh is not UNKNOWN:
        axes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
        found.fact("devices", f"{mesh.devices.size} of kind {mesh.devices.flat[0].device_kind}, mesh: {axes}")
    return mesh


def _follow_devices(found: Findings, c: Settings, mesh: Mesh, prompt: Prompt) -> tuple[Settings, DataSettings]:
    """Settings with the rows that there are, and those of the data with rows as in the config."""
    whole = c.data if c.data.rows > 0 else dataclasses.replace(c.data, rows=run_settings.WHOLE_ROWS)
    # The instruction of a prompt that is not known takes nothing.
    longest = 0 if prompt is UNKNOWN else max(map(len, prompt.instructions()))
    resolved = found.ask("rows of the devices", run_settings.follow_devices, c, mesh, longest, settings=_ROWS)
    return (dataclasses.replace(c, data=whole) if resolved is UNKNOWN else resolved), whole


def _look_at_rows(found: Findings, c: Settings, mesh: Mesh) -> None:
    if c.data.rows > 0:
        found.ask("rows of the mesh", sharding.check_rows, mesh, c.data.rows, "config.data.rows", settings=_ROWS)


def _look_at_schedule(found: Findings, c: Settings) -> None:
    told = found.ask("schedule", schedule.warnings, c, settings=("optimizer", "updates", "encoder", "checkpoint.every"))
    if told is not UNKNOWN:
        found.warnings += told
        found.fact("updates", (
            f"{c.training.updates:,}, of them {c.optimizer.warmup_updates:,} for the warm-up; a checkpoint every "
            f"{c.training.checkpoint_every:,}"
        ))  # fmt: skip


def _look_at_evaluation(found: Findings, c: Settings, mesh: Mesh) -> int:
    """What --mode=eval will need: it may be made later, so but for samples nothing keeps training from starting.

    Returns how many clips there are to decode.
    """
    e = c.evaluation
    rests_on = (
        "evaluate.names", "evaluate.split", "evaluate.decoding.compression", "data.path", "data.compression",
        "data.feature_width", "encoder.train",
    )  # fmt: skip
    clips = found.ask("folders to evaluate", _clips_to_decode, c, settings=rests_on, warn=True)
    if c.samples.clips and c.evaluation.compression not in c.data.compression:  # else the corpus was looked at for it
        for name in c.data.train:
            found.ask(f"{name} (valid)", open_sources, c.data_to_decode, (name,), "valid", settings=rests_on)
    found.ask("rows of the evaluation", sharding.check_rows, mesh, e.rows, "config.evaluate.rows",
              settings=("evaluate.rows",), warn=True)  # fmt: skip
    found.ask("channels", read_channels, e.mapping, settings=("evaluate.mapping",), warn=True)
    if clips is UNKNOWN:
        return 0
    found.fact("evaluation", f"{clips:,} clips of {', '.join(e.names)} ({e.split})")
    return clips


def _clips_to_decode(c: Settings) -> int:
    clips, bad = 0, {}
    for name in c.evaluation.names:
        try:
            if name in RESERVED:
                raise InputError(f"config.evaluate.names holds {name!r}, expected names of shard folders")
            (source,) = open_sources(c.data_to_decode, (name,), c.evaluation.split)
            clips += len(source)
        except InputError as error:
            bad[name] = error
    if bad:
        first = next(iter(bad.values()))
        raise InputError(f"--mode=eval would not start for {', '.join(bad)}: {first}") from first
    return clips


def _look_at_work(found: Findings, c: Settings, folder: Any, experiment: Experiment, clips: int) -> None:
    """What is in the work folder already, and whether there is room for more."""
    # Orbax lets the processes wait for each other: all of them open the checkpoints, or none does.
    known = folder is not UNKNOWN and experiment is not UNKNOWN
    known = all(json.loads(one) for one in from_all(json.dumps(known)))
    begun = found.ask(
        "checkpoints", places.check_begun, folder if known else UNKNOWN, experiment,
        settings=("seed", "lora", "llm", "prompt", "encoder", "data"),
    )  # fmt: skip
    if c.training.init_from and (begun is UNKNOWN or begun.step is None):  # a run that has begun needs it no more
        found.ask("weights to begin with", open_source, experiment if known else UNKNOWN, settings=("init_from",))
    if experiment is UNKNOWN:
        return
    size = places.checkpoint_bytes(experiment)
    free = found.ask(
        "free space", places.check_room, folder, c, size, begun, clips, settings=("checkpoint.keep", "updates")
    )  # fmt: skip
    if begun is not UNKNOWN and free is not UNKNOWN:
        room = "" if free is None else f"; {free / 1e9:,.1f} GB are free"
        found.fact(
            "checkpoints",
            f"{size / 1e6:,.1f} MB each, the last {c.training.checkpoint_keep} and the best are kept{room}",
        )
        found.fact("work folder", f"{folder}: {_progress(begun.step, c.training.updates)}")


def _progress(step: int | None, updates: int) -> str:
    if step is None:
        return "a new run"
    if step >= updates:
        return f"the run is finished, its {updates:,} updates are done: there is nothing to train"
    return f"goes on from update {step:,} of {updates:,}"


def _share(found: Findings) -> None:
    """Tells all processes the faults of each: any of them keeps all from starting."""
    for number, text in enumerate(from_all(json.dumps(found.faults))):
        others = [one for one in json.loads(text) if one not in found.faults]
        found.faults += [f"{one} (process {number})" for one in others]
