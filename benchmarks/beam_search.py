"""Clips a second of beam search: this project's batches against transformers' `generate`, same model, same clips.

    python -m benchmarks.beam_search [--output FILE.json]

By default 20 beams and 24 new tokens for 32 clips, with a LLaMA of 109 million parameters; float32 on a CPU, bfloat16
on a GPU. Random weights seldom say the end token, so that all sides generate as many tokens. Every side starts at run
lengths and features, ours at the shards. Both take the threads they take by themselves: all cores.

    batched              this project's evaluation: all clips at once
    one clip at a time   transformers' `generate`, the reference's way
    same batch           transformers' `generate`, prompts padded on the left

All must find the same tokens, but for near ties.
"""

import argparse
import dataclasses
import pathlib
import tempfile
from collections.abc import Sequence

import jax
import numpy as np
import torch

from benchmarks import rounds, vasr_clips
from benchmarks.random_model import SMALL, RandomModel, TorchModel, add_size_flags, prepare, to_torch
from convert.hub.configuration_viavsp import ViAVSPConfig
from convert.hub.modeling_viavsp import ViAVSPModel
from viavsp_jax import sharding
from viavsp_jax.data import pipeline
from viavsp_jax.data.examples import Example
from viavsp_jax.data.prompt import LANGUAGES, RECOGNITION, TRANSLATION
from viavsp_jax.decoding.decoder import Decoder, fill_up
from viavsp_jax.runtime.errors import reported_to_user

# VASR's prompts, of 76 frames and up to 91 positions, in one size.
BUCKET = 96
# Least share of clips in which a side of float32 finds the same tokens.
EQUAL = 0.9

Found = dict[str, list[int]]  # tokens by clip


def until_end(ids: Sequence[int], end_id: int) -> list[int]:
    """Generated tokens without what fills them up."""
    ids = list(map(int, ids))
    return ids[: ids.index(end_id)] if end_id in ids else ids


class BatchedSearch:
    """This project's evaluation of the split `test`. Called, it decodes all clips and returns their number."""

    def __init__(self, model: RandomModel):
        e = model.experiment
        self.model = model
        self.decoder = Decoder(e.mesh, e.structure, e.settings.evaluation.decoding, e.prompt.end_ids)
        self.found: Found = {}

    def __call__(self) -> int:
        e, prompt = self.model.experiment, self.model.experiment.prompt
        data, c = e.settings.data, e.settings.evaluation
        self.found = {}
        clips = pipeline.evaluation_records(data, vasr_clips.FOLDER, c.split)
        for records, batch in pipeline.decoding_batches(data, prompt, clips, c.rows, c.bucket):
            batch = sharding.put_whole_batch(e.mesh, fill_up(batch, records))
            tokens, _ = jax.device_get(self.decoder(self.model.trainable, self.model.frozen, batch))
            for record, ids in zip(records, tokens[:, 0], strict=False):
                self.found[record["id"]] = until_end(ids, prompt.end_id)
        return len(self.found)


class Generate:
    """transformers' `generate` on `batch` clips at a time. Called, it decodes all clips and returns their number."""

    def __init__(self, model: ViAVSPModel, clips: Sequence[Example], batch: int):
        self.model, self.clips, self.batch = model, clips, batch
        self.found: Found = {}

    def __call__(self) -> int:
        self.found = {}
        for start in range(0, len(self.clips), self.batch):
            clips = self.clips[start : start + self.batch]
            features, counts = (
                [torch.as_tensor(clip[name]) for clip in clips] for name in ("features", "cluster_counts")
            )
            found = self.model.recognize(features, counts, [("vi", "vi")] * len(clips))
            for clip, hypotheses in zip(clips, found, strict=True):
                self.found[clip["id"]] = hypotheses[0]["tokens"]
        return len(self.found)


def exported(model: RandomModel, theirs: TorchModel) -> ViAVSPModel:
    """`theirs` as an export decodes with it: all weights in the dtype of the frozen ones."""
    settings = model.experiment.settings
    config = ViAVSPConfig(
        feature_width=settings.data.feature_width,
        end_token=settings.llm.end_token,
        decoding=dataclasses.asdict(settings.evaluation.decoding),
        recognition_instruction=RECOGNITION,
        translation_instruction=TRANSLATION,
        languages=LANGUAGES,
    )
    dtype = getattr(torch, settings.dtype)
    llm = theirs.llm.to(dtype).eval().base_model.model
    return ViAVSPModel(config, llm, theirs.projector.to(dtype), model.experiment.prompt.tokenizer)


def torch_sides(model: RandomModel, theirs: TorchModel, clips: Sequence[Example]) -> dict[str, Generate]:
    """PyTorch's, by name."""
    ported = exported(model, theirs)
    return {"one clip at a time": Generate(ported, clips, 1), "same batch": Generate(ported, clips, len(clips))}


def check_tokens(ours: BatchedSearch, sides: dict[str, Generate]) -> dict[str, float]:
    """Share of clips in which a side found the tokens that ours found, once all of them have been called.

    AssertionError when it is below EQUAL although both compute in float32.
    """
    shares = {
        f"equal_tokens,_{name}": float(np.mean([side.found[clip] == ids for clip, ids in ours.found.items()]))
        for name, side in sides.items()
    }
    if ours.model.experiment.settings.dtype == "float32" and any(share < EQUAL for share in shares.values()):
        raise AssertionError(f"the sides decode differently: {shares}")
    return shares | {"mean_new_tokens": float(np.mean([len(ids) for ids in ours.found.values()]))}


def add_flags(parser: argparse.ArgumentParser, clips: int) -> None:
    """The flags of `settings`."""
    parser.add_argument("--clips", type=int, default=clips, help="decoded at once (default: %(default)s)")
    parser.add_argument("--beams", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--new_tokens", type=int, default=24, help="default: %(default)s")


def settings(args: argparse.Namespace) -> dict[str, int]:
    """Of the config, dotted names."""
    return {
        "evaluate.rows": args.clips,
        "evaluate.bucket": BUCKET,
        "evaluate.decoding.num_beams": args.beams,
        "evaluate.decoding.max_new_tokens": args.new_tokens,
    }


@reported_to_user()
def main(arguments: Sequence[str] | None = None) -> rounds.Comparison:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.beam_search", description=__doc__.split("\n")[0])
    rounds.add_flags(parser)
    add_flags(parser, clips=32)
    add_size_flags(parser, SMALL)
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        model, clips = prepare(pathlib.Path(folder), args, {"test": args.clips}, **settings(args))
        ours, theirs = BatchedSearch(model), torch_sides(model, to_torch(model), clips)
        comparison = rounds.compare({"batched": ours} | theirs, args.rounds, "beam search")
    rounds.report([comparison], args.output, **check_tokens(ours, theirs))
    return comparison


if __name__ == "__main__":
    main()
