"""Exports a training checkpoint in Hugging Face form.

    python -m convert.to_hf --workdir DIR --output HF_DIR [--step best|latest|N] [--llm FOLDER] [--merge]

HF_DIR gets `adapter/` (for peft), `projector.safetensors`, `viavsp.json` (what decoding must know), the tokenizer
and, with --merge, `merged/`: the language model with the adapter folded in, for transformers.
"""

import argparse
import contextlib
import functools
import json
import pathlib
import shutil
from collections.abc import Callable, Iterator

import jax
import ml_dtypes
import numpy as np
from etils import epath
from peft import LoraConfig
from safetensors.numpy import save_file

from convert import safetensors_files
from convert.from_hf import TOKENIZER_FILES, copy_files
from convert.names import Tensor, Tree, flatten, tensors
from convert.safetensors_files import HEADER, Piece
from viavsp_jax.checkpoint import Checkpoints
from viavsp_jax.data.prompt import Prompt, load_prompt
from viavsp_jax.errors import InputError, reported_to_user
from viavsp_jax.llm_folder import llama_config, read_conversion, read_layer
from viavsp_jax.models.lora import LoRAConfig, merge_adapter
from viavsp_jax.models.quantize import Quantization, round_trip
from viavsp_jax.state import abstract_model


@contextlib.contextmanager
def replacing(output: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a new folder that becomes `output` when nothing failed; only an earlier export is overwritten."""
    if output.exists() and any(output.iterdir()) and not (output / "viavsp.json").exists():
        raise InputError(f"{output} is not empty and no earlier export: give another --output")
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        shutil.rmtree(output, ignore_errors=True)
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def hugging_face_tensors(weights: Tree) -> dict[str, np.ndarray]:
    """All weights under their Hugging Face names and in that orientation."""
    flat = flatten(weights)
    return {
        tensor.name: np.ascontiguousarray(tensor.turned(flat[tensor.path][tensor.index])) for tensor in tensors(weights)
    }


def write_adapter(folder: pathlib.Path, weights: Tree, lora: LoRAConfig, base: str) -> None:
    """Writes the folder that peft's PeftModel.from_pretrained reads; `weights` {"llm": ...} float32."""
    named = hugging_face_tensors(weights)
    alpha = int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=alpha,
        lora_dropout=lora.dropout,
        target_modules=sorted({name.split(".")[-3] for name in named}),
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        inference_mode=True,
    )
    config.save_pretrained(folder)
    save_file(named, folder / "adapter_model.safetensors", HEADER)


def merged(
    llm: epath.PathLike, tensor: Tensor, adapters: Tree, lora: LoRAConfig, quantization: Quantization
) -> np.ndarray:
    """One frozen tensor with its adapter folded in, in Hugging Face orientation.

    Args:
      llm: the converted language-model folder.
      tensor: which one.
      adapters: learnt weights by our path, numpy float32; those of other tensors are passed over.
      quantization: how the kernels were stored in training. Adapters are folded into what they were trained against.

    Sums are float32, the result is in the stored dtype.
    """
    value, adapter = read_layer(llm, tensor.path.removeprefix("llm/"), tensor.index), tensor.path.removesuffix("kernel")
    if quantization == "nf4" and tensor.path.endswith("/kernel"):
        value = np.asarray(round_trip(value))
    if f"{adapter}lora/a" in adapters:
        a, b = (adapters[f"{adapter}lora/{name}"][tensor.index] for name in "ab")
        value = np.asarray(merge_adapter(value, a, b, lora))
    return tensor.turned(value)


def pieces(abstract: Tree, read: Callable[[Tensor], np.ndarray]) -> list[Piece]:
    """All tensors of a model by their Hugging Face names; `read` gives each of them."""
    dtypes = {path: value.dtype for path, value in flatten(abstract).items()}
    return [
        Piece(tensor.name, tensor.shape, dtypes[tensor.path], functools.partial(read, tensor))
        for tensor in tensors(abstract)
    ]


def write_merged_configs(folder: pathlib.Path, llm: epath.PathLike, prompt: Prompt, dtype: str) -> None:
    """The tokenizer, config.json in the stored dtype, and a generation config that stops at the end token."""
    copy_files(llm, folder, TOKENIZER_FILES)
    config = json.loads((epath.Path(llm) / "config.json").read_text())
    config["torch_dtype" if "torch_dtype" in config else "dtype"] = dtype
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    generation = {"bos_token_id": prompt.begin_id, "eos_token_id": prompt.end_id, "pad_token_id": prompt.pad_id}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2))


def export(
    workdir: epath.PathLike, output: str, step: str = "best", llm: epath.PathLike | None = None, merge: bool = False
) -> None:
    """Writes the export; see the module's docstring. `llm` replaces the config's language-model folder.

    Raises InputError when there is no such checkpoint, or no converted language model.
    """
    if not (epath.Path(workdir) / "checkpoints").exists():
        raise InputError(f"{workdir} holds no checkpoints: train first, or give another --workdir")
    checkpoints = Checkpoints(workdir)
    chosen = checkpoints.choose(step)
    config = checkpoints.restore_config(chosen)
    llm = llm or config["llm"]["path"]
    conversion, lora = read_conversion(llm), LoRAConfig(**config["lora"])
    checkpoints.check_fits(chosen, {"language model sha256": conversion["sha256"]})
    dtype = np.dtype(getattr(ml_dtypes, conversion["dtype"], conversion["dtype"]))
    _, abstract, frozen = abstract_model(llama_config(llm), lora, config["data"]["feature_width"], dtype)
    trainable = jax.tree.map(np.asarray, checkpoints.restore_trainable(chosen, abstract))
    checkpoints.close()
    prompt = load_prompt(llm, config["llm"]["end_token"])
    with replacing(pathlib.Path(output).absolute()) as folder:
        write_adapter(folder / "adapter", {"llm": trainable["llm"]}, lora, conversion["source"])
        projector = hugging_face_tensors({"projector": trainable["projector"]})
        save_file(projector, folder / "projector.safetensors", HEADER)
        copy_files(llm, folder, TOKENIZER_FILES)
        if merge:
            (folder / "merged").mkdir()
            quantization = config["llm"].get("quantization", "none")
            adapters = flatten(trainable)
            read = functools.partial(merged, llm, adapters=adapters, lora=lora, quantization=quantization)
            safetensors_files.write(folder / "merged", pieces(frozen, read))
            write_merged_configs(folder / "merged", llm, prompt, conversion["dtype"])
        settings = {
            "feature_width": config["data"]["feature_width"],
            "end_token": config["llm"]["end_token"],
            "decoding": config["evaluate"]["decoding"],
            "dtype": config["dtype"],
            "step": chosen,
            "llm_sha256": conversion["sha256"],
            "config": config,
        }
        (folder / "viavsp.json").write_text(json.dumps(settings, indent=2, ensure_ascii=False))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m convert.to_hf", description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", required=True, help="the work folder of the training")
    parser.add_argument("--output", required=True, metavar="HF_DIR", help="the folder to write")
    parser.add_argument("--step", default="best", help="best, latest or a number (default: best)")
    parser.add_argument("--llm", metavar="FOLDER", help="the converted language model (default: the config's)")
    parser.add_argument("--merge", action="store_true", help="also write the language model with the adapter in it")
    args = parser.parse_args()
    with reported_to_user():
        export(args.workdir, args.output, args.step, args.llm, args.merge)


if __name__ == "__main__":
    main()
