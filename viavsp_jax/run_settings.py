"""A config that was checked, as dataclasses: a part for each room."""

import dataclasses

import ml_collections
from jax.sharding import Mesh

from viavsp_jax import settings, sharding
from viavsp_jax.data.compression import Compression
from viavsp_jax.data.lost import DropFrames
from viavsp_jax.data.masks import Masks
from viavsp_jax.data.packing import RowShape
from viavsp_jax.data.prompt import PromptSettings
from viavsp_jax.data.settings import Augmentation, ClipSeconds, DataSettings
from viavsp_jax.decoding.calibration import AS_CALIBRATED
from viavsp_jax.decoding.search import DecodingConfig
from viavsp_jax.models.avhubert.config import BatchNormStatistics
from viavsp_jax.models.llama import Remat
from viavsp_jax.models.lora import LoRAConfig
from viavsp_jax.models.quantize import Quantization
from viavsp_jax.optimizer import OptimizerSettings
from viavsp_jax.rules import BestBy
from viavsp_jax.runtime.errors import InputError
from viavsp_jax.sharding import MeshSettings

# Rows of `config.data.row` in a batch where `config.data.rows` follows the devices, and rows a device decodes.
WHOLE_ROWS, DECODED_ROWS = 8, 2


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """Of the loop; fields of the config itself, of `config.checkpoint` and `config.ctc`."""

    seed: int
    updates: int
    log_every: int
    profile_steps: tuple[int, ...]
    label_smoothing: float
    ctc_weight: float
    init_from: str
    remat: Remat
    device_rows: int
    checkpoint_every: int
    checkpoint_keep: int
    best_by: BestBy
    patience: int
    trackers: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class LanguageModelSettings:
    """The fields of `config.llm`."""

    path: str
    end_token: str
    quantization: Quantization


@dataclasses.dataclass(frozen=True)
class EncoderSettings:
    """The fields of `config.encoder`, but for `freeze_updates`, which the optimizer has."""

    train: bool
    path: str
    batch_norm: BatchNormStatistics
    layer_drop: float
    activation_dropout: float


@dataclasses.dataclass(frozen=True)
class CTCSettings:
    """The fields of `config.ctc`."""

    weight: float
    units: int
    width: int


@dataclasses.dataclass(frozen=True)
class SampleSettings:
    """The fields of `config.samples`."""

    clips: int
    max_new_tokens: int


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """The fields of `config.evaluate`."""

    names: tuple[str, ...]
    split: str
    mapping: str
    rows: int
    bucket: int
    decoding: DecodingConfig
    compression: Compression  # of what is decoded
    ctc_weight: float  # of the CTC head among the hypotheses; -1: as the checkpoint was calibrated


@dataclasses.dataclass(frozen=True)
class Settings:
    """A config that was checked; each part is for one room."""

    dtype: str  # that the model computes in
    training: TrainingSettings
    llm: LanguageModelSettings
    prompt: PromptSettings
    lora: LoRAConfig
    encoder: EncoderSettings
    ctc: CTCSettings
    data: DataSettings
    optimizer: OptimizerSettings
    mesh: MeshSettings
    samples: SampleSettings
    evaluation: EvaluationSettings

    @property
    def data_to_decode(self) -> DataSettings:
        """The data as decoding reads them: their frames become positions as it is told."""
        return dataclasses.replace(self.data, compression=(self.evaluation.compression,))


def read_settings(config: ml_collections.ConfigDict) -> Settings:
    """Raises InputError that lists every setting with a wrong value, too many or missing; reads no file."""
    settings.check(config)
    return parts_of(config)


def parts_of(config: ml_collections.ConfigDict) -> Settings:
    """The settings of a config whose values are right, each for itself: see `settings.check`."""
    c = ml_collections.FrozenConfigDict(config)  # whose sequences are tuples
    encoder, data, evaluate = dict(c.encoder), dict(c.data), dict(c.evaluate)
    lengths, noise = {"freeze_updates": encoder.pop("freeze_updates")}, c.data.augment.noise
    optimizer = dict(c.optimizer) | {"parts": c.train.parts, "train_encoder": c.encoder.train}
    for name in ("warmup_updates", "hold_updates", "decay_updates"):
        lengths[name] = optimizer.pop(name)
    lengths = {name: round(x * c.updates) if isinstance(x, float) else x for name, x in lengths.items()}
    data["row"], data["seconds"] = RowShape(**c.data.row), ClipSeconds(**c.data.seconds)
    augment, decoding = c.data.augment, dict(c.evaluate.decoding)
    data["compression"] = tuple(map(Compression.of, c.data.compression))
    evaluate["ctc_weight"] = decoding.pop("ctc_weight", AS_CALIBRATED)
    if chosen := decoding.pop("compression", ""):
        evaluate["compression"] = Compression.of(chosen)
    else:
        evaluate["compression"] = data["compression"][0]
    data["augment"] = Augmentation(
        noise.probability, noise.kinds, noise.snr_db, noise.talkers,
        augment.drop_audio, augment.drop_video, DropFrames(**augment.drop_frames), Masks(**augment.mask),
    )  # fmt: skip
    return Settings(
        c.dtype,
        TrainingSettings(
            c.seed, c.updates, c.log_every, c.profile_steps, c.label_smoothing, c.ctc.weight, c.init_from, c.remat,
            c.device_rows, c.checkpoint.every, c.checkpoint.keep, c.checkpoint.best_by, c.checkpoint.patience,
            c.trackers,
        ),
        LanguageModelSettings(**c.llm),
        PromptSettings(**c.prompt),
        LoRAConfig(**c.lora),
        EncoderSettings(**encoder),
        CTCSettings(**c.ctc),
        DataSettings(**data, of_clips=c.encoder.train, dtype=c.dtype, seed=c.seed),
        OptimizerSettings(**optimizer, **lengths),
        MeshSettings(**c.mesh),
        SampleSettings(**c.samples),
        EvaluationSettings(**evaluate | {"decoding": DecodingConfig(**decoding)}),
    )  # fmt: skip


def follow_devices(settings: Settings, mesh: Mesh, instruction: int) -> Settings:
    """Settings with numbers of rows in place of -1.

    A batch is worth 8 rows, or as many more as every device gets as many; on more than 8 devices there is a row for
    each, as much shorter.

    Raises InputError if rows do not fit the mesh, or `config.device_rows` the rows.
    """
    c, pieces = settings, sharding.pieces(mesh)
    data, evaluation = c.data, c.evaluation
    if data.rows == -1:
        rows = sharding.whole_rows(mesh, WHOLE_ROWS)
        data = dataclasses.replace(data, rows=rows, row=data.row.part(WHOLE_ROWS / rows, instruction, data.of_clips))
    if evaluation.rows == -1:
        evaluation = dataclasses.replace(evaluation, rows=DECODED_ROWS * pieces)
    own = data.rows // pieces
    if c.training.device_rows and own > c.training.device_rows and own % c.training.device_rows:
        raise InputError(
            f"config.device_rows is {c.training.device_rows}, which does not divide the {own} rows of each device"
        )
    return dataclasses.replace(c, data=data, evaluation=evaluation)
