"""python -m viavsp_jax.prepare STAGE …: from a corpus of clips to the shards that training reads."""

import argparse
import importlib
import logging
import sys
from collections.abc import Sequence

from viavsp_jax.runtime.errors import reported_to_user
from viavsp_jax.runtime.startup import quick_imports

_STAGES = {
    "demo": "make a small corpus of synthesized Vietnamese speech and mouth video, in the VASR layout",
    "mouths": "cut the mouth of the speaker out of videos of any kind: a corpus of one's own, in the VASR layout",
    "manifest": "list the usable clips of a corpus: {split}.tsv and {split}.wrd",
    "kmeans": "fit the cluster centres of encoder features, by which frames are averaged",
    "shards": "encode all clips once: features and cluster counts as ArrayRecord",
}
_EPILOG = (
    "Run the stages in this order; demo and mouths are alternatives, both optional. Each has its own --help. "
    "kmeans and shards need PyTorch unless --backend jax."
)


@reported_to_user()
def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one stage; without `arguments` by those of this process."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m viavsp_jax.prepare", description=__doc__, epilog=_EPILOG)
    subparsers = parser.add_subparsers(dest="stage", required=True, metavar="STAGE")
    stage = None
    for name, summary in _STAGES.items():
        subparser = subparsers.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if name in arguments[:1]:  # the others are not imported: manifest works without PyTorch
            with quick_imports():
                stage = importlib.import_module(f"viavsp_jax.prepare.{name}")
            stage.add_arguments(subparser)
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    stage.run(args)


if __name__ == "__main__":
    main()
