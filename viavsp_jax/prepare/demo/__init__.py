"""Stage 0, for the demo: a corpus of synthesized Vietnamese speech and rendered mouths."""

import argparse
import os

from viavsp_jax.runtime.options import MAX_SEED, new_folder_on_disk, whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the stage."""
    parser.add_argument("--output", type=new_folder_on_disk("--output"), required=True, help="folder of the corpus")
    parser.add_argument(
        "--layout",
        choices=["vasr", "webdataset"],
        default="vasr",
        help="vasr: files and a table; webdataset: tar archives, as ViCocktail (default vasr)",
    )
    parser.add_argument("--num_train", type=whole("--num_train", 1), default=1500, help="training clips (default 1500)")
    parser.add_argument("--num_valid", type=whole("--num_valid", 0), default=100, help="validation clips (default 100)")
    parser.add_argument("--num_test", type=whole("--num_test", 0), default=100, help="test clips (default 100)")
    parser.add_argument(
        "--seed", type=whole("--seed", 0, MAX_SEED), default=0, help="seed of sentences and voices (default 0)"
    )
    parser.add_argument(
        "--workers", type=whole("--workers", 1), default=os.cpu_count() or 1, help="rendering processes"
    )


def run(args: argparse.Namespace) -> None:
    """Writes the corpus, or what is missing of it."""
    # Its generator needs packages that only the demo installs.
    from viavsp_jax.prepare.demo.corpus import plan_corpus, write_corpus
    from viavsp_jax.prepare.demo.tars import write_archives

    counts = args.num_train, args.num_valid, args.num_test
    clips = plan_corpus(args.output, *counts, seed=args.seed, layout=args.layout)
    (write_corpus if args.layout == "vasr" else write_archives)(args.output, clips, args.workers)
