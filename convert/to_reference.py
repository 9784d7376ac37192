"""Gives a trained model back to the reference, as fairseq's `checkpoint_best.pt` or for its Hugging Face class.

    python -m convert.to_reference --workdir DIR [--step best|latest|N] [--encoder DIR] \
        [--fairseq checkpoint_best.pt] [--hf HF_DIR]

--fairseq writes what fairseq's trainer would: weights, settings by the reference's names, and Adam's state.
--hf writes the weights that `AVSPLLMModel.from_pretrained` reads, the language model included; copy the reference's
`model.km` beside them. --encoder is the folder of the encoder (convert.from_fairseq, convert.from_reference); two of
its weights that only the pre-training used are in its pretraining.safetensors, and left out where that is missing.
Where the encoder was trained, its weights are those of the checkpoint, and only these two are taken from --encoder,
which then is the folder that it grew from (default: the config's).
"""

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from etils import epath
from safetensors import safe_open

from convert import safetensors_files
from convert.avhubert import to_torch_names
from convert.fairseq_container import PRETRAINED_ONLY, as_tensor, container
from convert.from_fairseq import CONFIG_NAMES
from convert.from_hf import TOKENIZER_FILES, copy_files
from convert.names import REFERENCE_ENCODER, Tree, check_names, encoder_order, flatten, reference_order, tensors
from convert.pretrained import PRETRAINING_FILE
from convert.safetensors_files import DTYPES, Piece, opened
from convert.work_folder import WorkFolder, adapters, check_reference_holds, encoder_weights, open_work_folder
from viavsp_jax import encoder_folder
from viavsp_jax.data.compression import CLUSTERS
from viavsp_jax.data.prompt import REFERENCE
from viavsp_jax.encoder_folder import WEIGHTS_FILE
from viavsp_jax.llm_folder import llama_config, read_layer
from viavsp_jax.models.avhubert.config import AVHubertConfig
from viavsp_jax.prepare.features.avhubert_torch import AVHubert
from viavsp_jax.runtime.atomic import atomic_write
from viavsp_jax.runtime.errors import InputError, reported_to_user
from viavsp_jax.runtime.options import checkpoint_step, new_file, new_folder_on_disk
from viavsp_jax.state import TrainState

# The reference fixes rank and alpha in its code.
REFERENCE_LORA = (16, 32)


@dataclasses.dataclass(frozen=True)
class Encoder:
    """An encoder: its config, its weights by the reference's names, and the checkpoint it came from."""

    config: AVHubertConfig
    pieces: list[Piece]  # in the reference's order
    source: str


def llm_pieces(work: WorkFolder, state: TrainState) -> Iterator[Piece]:
    """Projector, language model and adapters, layer by layer."""
    trainable = adapters(state.trainable)
    flat = flatten(trainable)
    dtypes = {path: value.dtype for path, value in flatten(work.frozen).items()}
    for tensor in sorted(tensors(trainable) + tensors(work.frozen), key=reference_order):

        def read(tensor=tensor) -> np.ndarray:
            if tensor.path in flat:
                value = flat[tensor.path][tensor.index]
            else:
                value = read_layer(work.llm, tensor.path.removeprefix("llm/"), tensor.index)
            return tensor.to_theirs(value)

        yield Piece(tensor.reference_name, tensor.shape, dtypes.get(tensor.path, np.dtype(np.float32)), read)


def read_encoder(folder: epath.PathLike, trained: Tree | None = None) -> Encoder:
    """An encoder folder or, of a trained one, the weights and what only the folder that it grew from has.

    Raises InputError if a file is missing or unreadable, or its names do not fit its config.
    """
    folder = epath.Path(folder)
    config = encoder_folder.read_config(folder)
    if not config.final_norm:
        raise InputError(f"{folder} holds a part of the blocks, expected all of them, as the reference's formats do")
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in AVHubert(config).state_dict().items()}
    pieces, source = [], str(folder)
    if (folder / PRETRAINING_FILE).exists():
        file = opened(folder / PRETRAINING_FILE)
        source = (file.metadata() or {}).get("source", source)
        pieces = [file_piece(file, name) for name in PRETRAINED_ONLY if name in file.keys()]
    if trained is None:
        path = folder / WEIGHTS_FILE
        file = opened(path)
        check_names(expected, file.keys(), str(path))
        pieces += [file_piece(file, name) for name in expected]
        for piece in pieces:
            if piece.shape != (wanted := expected.get(piece.name, piece.shape)):
                raise InputError(f"{path}: {piece.name} is {list(piece.shape)}, its config wants {list(wanted)}")
    else:
        pieces += [
            Piece(name, value.shape, value.dtype, lambda value=value: value)
            for name, value in to_torch_names(trained).items()
        ]
    pieces.sort(key=lambda piece: encoder_order(piece.name))
    return Encoder(config, [dataclasses.replace(one, name=REFERENCE_ENCODER + one.name) for one in pieces], source)


def file_piece(file: safe_open, name: str) -> Piece:
    """One of its tensors."""
    header = file.get_slice(name)
    return Piece(name, tuple(header.get_shape()), DTYPES[header.get_dtype()], lambda: file.get_tensor(name))


def write_fairseq(path: epath.PathLike, work: WorkFolder, state: TrainState, encoder: Encoder | None) -> None:
    """Writes a `checkpoint_best.pt` that PyTorch reads with weights_only=True."""
    weights = {}
    for piece in encoder.pieces if encoder else ():
        value = as_tensor(piece.read())
        weights[piece.name] = value.float() if value.is_floating_point() else value
    paths = {"w2v_path": encoder.source if encoder else "", "llm_ckpt_path": work.conversion["source"]}
    content = container(state, work.settings, work.checkpoints.accuracy(work.step), weights, paths)
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        torch.save(content, file)


def write_hugging_face(folder: epath.PathLike, work: WorkFolder, state: TrainState, encoder: Encoder) -> None:
    """Writes config.json and the weights in several files, one of which is in memory at a time."""
    folder = pathlib.Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty: give another --hf")
    folder.mkdir(parents=True, exist_ok=True)
    safetensors_files.write(folder, [*encoder.pieces, *llm_pieces(work, state)])
    copy_files(work.llm, folder, TOKENIZER_FILES)
    config = json.dumps(hugging_face_config(work, encoder), indent=2)
    (folder / "config.json").write_text(config + "\n", encoding="utf-8")


def hugging_face_config(work: WorkFolder, encoder: Encoder) -> dict[str, object]:
    """Settings of the reference's AVSPLLMConfig; its defaults hold for what is not in it."""
    shapes = {piece.name: piece.shape for piece in encoder.pieces}
    pretrained = {}
    if labels := shapes.get(f"{REFERENCE_ENCODER}label_embs_concat"):
        pretrained = {"num_classes": labels[0], "final_dim": labels[1]}
    return {
        "architectures": ["AVSPLLMModel"],
        "model_type": "avsp_llm",
        **{theirs: getattr(encoder.config, ours) for ours, theirs in CONFIG_NAMES.items()},
        **pretrained,
        "decoder_embed_dim": llama_config(work.llm).hidden_size,
        "llm_ckpt_path": work.conversion["source"],
        "km_path": "model.km",
    }


def export(
    workdir: epath.PathLike,
    step: str = "best",
    encoder: epath.PathLike | None = None,
    fairseq: epath.PathLike | None = None,
    hf: epath.PathLike | None = None,
    llm: epath.PathLike | None = None,
) -> None:
    """Writes the forms that paths are given for; see the module's docstring. Prints what they lack.

    Raises InputError when a part is missing or nothing is asked for.
    """
    if not fairseq and not hf:
        raise InputError("nothing to write: expected --fairseq, --hf or both")
    work = open_work_folder(workdir, step, llm, encoder)
    check_reference_holds(llama_config(work.llm), work.settings.lora)
    if CLUSTERS not in (ways := work.settings.data.compression):
        raise InputError(
            "the reference's code averages the frames of one cluster, and this model was trained with "
            f"config.data.compression={', '.join(map(str, ways))}: expected clusters among them"
        )
    state, settings, trained = work.read_state(), work.settings, None
    if settings.encoder.train:
        encoder, trained = work.encoder_path, encoder_weights(state.trainable, state.batch_stats)
    parts = read_encoder(encoder, trained) if encoder else None
    if hf and not parts:
        raise InputError("--hf needs --encoder: AVSPLLMModel holds the encoder too")
    if parts and parts.config.embed_dim != settings.data.feature_width:
        raise InputError(
            f"{encoder} yields features of width {parts.config.embed_dim}, the checkpoint in {workdir} was trained on "
            f"width {settings.data.feature_width}"
        )
    if (settings.lora.rank, settings.lora.alpha) != REFERENCE_LORA:
        print(f"note: the reference's code has LoRA rank and alpha {REFERENCE_LORA}; change them there for this model")
    if settings.prompt != REFERENCE:
        print("note: the reference's code has its own instruction and no chat; change them there for this model")
    if parts is None:
        print(
            "note: without --encoder the file holds neither the encoder nor Adam's state, which counts its parameters"
        )
    elif not parts.pieces[0].name.endswith(PRETRAINED_ONLY):
        print(f"note: {encoder} has no {PRETRAINING_FILE}, so {' and '.join(PRETRAINED_ONLY)} are left out")
    if parts and parts.config.waveform != "int16":
        print("note: the reference's code makes audio features of int16 values; this encoder hears floats")
    if fairseq:
        write_fairseq(fairseq, work, state, parts)
        print(f"wrote {fairseq}: update {state.step}")
    if hf:
        write_hugging_face(hf, work, state, parts)
        print(f"wrote {hf}: update {state.step}")
    work.checkpoints.close()


@reported_to_user()
def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m convert.to_reference", description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", required=True, help="the work folder of the training")
    parser.add_argument("--step", type=checkpoint_step, default="best", help="best, latest or a number (default: best)")
    parser.add_argument("--encoder", metavar="DIR", help="the encoder's folder")
    parser.add_argument(
        "--fairseq", type=new_file("--fairseq"), metavar="FILE.pt", help="write this checkpoint of fairseq"
    )
    parser.add_argument(
        "--hf",
        type=new_folder_on_disk("--hf"),
        metavar="DIR",
        help="write this folder for the reference's Hugging Face class",
    )
    parser.add_argument("--llm", metavar="FOLDER", help="the converted language model (default: the config's)")
    args = parser.parse_args(argv)
    export(**vars(args))


if __name__ == "__main__":
    main()
