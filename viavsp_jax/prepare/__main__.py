"""python -m viavsp_jax.prepare STAGE …: from a corpus of clips to the shards that training reads."""

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence

from viavsp_jax.errors import reported_to_user

_STAGES = {
    "demo": "make a small corpus of synthesized Vietnamese speech and mouth video, in the VASR layout",
    "manifest": "list the usable clips of a corpus: {split}.tsv and {split}.wrd",
    "kmeans": "learn the cluster centres of encoder features, by which frames are averaged",
    "shards": "encode all clips once: features and cluster counts as ArrayRecord",
}
_EPILOG = "The stages run in this order; each has its own --help. Only kmeans and shards need PyTorch."


class _Demo:
    """The demo corpus as a stage; its generator is a library of its own."""

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--output", required=True, help="folder of the corpus")
        parser.add_argument("--num_train", type=int, default=1500, help="training clips (default 1500)")
        parser.add_argument("--num_valid", type=int, default=100, help="validation clips (default 100)")
        parser.add_argument("--num_test", type=int, default=100, help="test clips (default 100)")
        parser.add_argument("--seed", type=int, default=0, help="seed of sentences and voices (default 0)")
        parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="rendering processes")

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        from viavsp_jax.prepare.demo.corpus import write_corpus

        write_corpus(args.output, args.num_train, args.num_valid, args.num_test, seed=args.seed, workers=args.workers)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m viavsp_jax.prepare", description=__doc__, epilog=_EPILOG)
    subparsers = parser.add_subparsers(dest="stage", required=True, metavar="STAGE")
    stage = None
    for name, summary in _STAGES.items():
        subparser = subparsers.add_parser(name, help=summary, description=summary.capitalize() + ".")
        if name in arguments[:1]:  # the others are not imported: manifest works without PyTorch
            stage = _Demo if name == "demo" else importlib.import_module(f"viavsp_jax.prepare.{name}")
            stage.add_arguments(subparser)
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with reported_to_user():
        stage.run(args)


if __name__ == "__main__":
    main(sys.argv[1:])
