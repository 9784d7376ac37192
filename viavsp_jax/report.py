"""Makes the reports of evaluations again from their hypotheses: python -m viavsp_jax.report --workdir WORKDIR."""

import argparse

from etils import epath

from viavsp_jax.data.ids import read_channels
from viavsp_jax.evaluation.report import results
from viavsp_jax.evaluation.report.page import make_report, write_reports
from viavsp_jax.runtime.errors import reported_to_user


def remake(workdir: epath.PathLike, mapping: epath.PathLike) -> None:
    """Writes report.json and report.html anew, of all evaluations and of the work folder by the last of them.

    Raises InputError if the work folder was not evaluated, or something of it is damaged.
    """
    last, channels = results.last_folder(workdir), read_channels(mapping)
    results.take_over(workdir)
    remade: results.Reports = {}
    for name, report in results.read_all(workdir).items():
        for key, about in report["evaluations"].items():
            rows = results.read_table(last.parent / name / f"{results.name_of(key, about)}.tsv")
            new = make_report(about, {results.name_of(key, about): rows}, channels)
            remade[name] = results.joined(remade.get(name), new)
    write_reports(workdir, remade, sorted(remade, key=lambda name: name == last.name))


@reported_to_user()
def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m viavsp_jax.report", description=__doc__.split(":")[0] + ".")
    parser.add_argument("--workdir", required=True, help="the folder that --mode=eval wrote to")
    parser.add_argument("--mapping", default="", help="mapping.json of the corpus, to tell channels apart")
    args = parser.parse_args()
    remake(args.workdir, args.mapping)


if __name__ == "__main__":
    main()
