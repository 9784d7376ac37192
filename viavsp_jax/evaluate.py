"""Evaluation: decode shard folders with a checkpoint, score them, write tables and a report."""

from typing import Any

import jax
import ml_collections
from etils import epath

from viavsp_jax.data.features import FRAME_RATE
from viavsp_jax.data.ids import read_channels
from viavsp_jax.decoding.frames import Hearing, best_units
from viavsp_jax.decoding.nbest import heard_words
from viavsp_jax.evaluation.report import results
from viavsp_jax.evaluation.report.page import check_reports, make_report, write_report
from viavsp_jax.evaluation.vietnamese import normalize
from viavsp_jax.experiment import Experiment
from viavsp_jax.hypotheses import DecodeBatch, decoded, load_checkpoint
from viavsp_jax.run_settings import read_settings
from viavsp_jax.runtime import distributed
from viavsp_jax.runtime.tables import aligned, write_table


def decode_folder(
    experiment: Experiment, decode_batch: DecodeBatch, name: str, hearing: Hearing | None = None
) -> list[dict[str, str | float]]:
    """Decodes one set: id, reference, hypothesis, score, languages, seconds and positions of each clip, by id.

    With a CTC head, the best hypothesis is chosen with it, and the score is that of both. `ctc` is what it makes of the
    clip by itself, and, where it was calibrated, `confidences` are how likely the words of the hypothesis are right,
    empty for a translation.
    """
    rows = []
    split = experiment.settings.evaluation.split
    for record, nbest, heard in decoded(experiment, decode_batch, name, split, hearing):
        recognised = record["source_language"] == record["target_language"]
        if hearing and recognised:  # a translation is not what is said
            nbest = hearing.ranked(nbest, heard)
        row = {
            "id": record["id"],
            "reference": normalize(record["transcript"]),
            "hypothesis": nbest.texts[0],
            "score": round(float(nbest.scores[0]), 4),
            "source_language": record["source_language"],
            "target_language": record["target_language"],
            "seconds": int(record["cluster_counts"].sum()) / FRAME_RATE,
            "positions": len(record["cluster_counts"]),
        }
        if hearing:
            row["ctc"] = normalize(hearing.units.words(best_units(heard)))
            if confidence := hearing.calibration.confidence:
                found = confidence(heard_words(nbest, heard, hearing.units)[1]) if recognised else ()
                row["confidences"] = " ".join(f"{one:.4f}" for one in found)
        rows.append(row)
    return sorted(rows, key=lambda row: row["id"])


@distributed.others_alive()
def evaluate(
    config: ml_collections.ConfigDict, workdir: epath.PathLike, which: str = "best"
) -> dict[str, dict[str, Any]]:
    """Decodes every folder of `config.evaluate.names` with a checkpoint of `workdir`: `best`, `latest` or a number.

    After each folder writes its table and the reports (see viavsp_jax/evaluation/report/results.py): other evaluations,
    and other folders of this one, stay. At the end prints the scores as a table. Where several processes share the
    work, the first one writes and prints.

    Returns the scores by name, the same to every process.
    """
    c = read_settings(config).evaluation
    channels = read_channels(c.mapping)
    workdir, is_first = epath.Path(workdir), jax.process_index() == 0
    check_reports(workdir)
    loaded = load_checkpoint(config, workdir, which, c.split)
    if is_first:
        results.take_over(workdir)
        folder = results.folder_of(workdir, loaded.about)
    scores = {}
    for name in c.names:
        rows = decode_folder(loaded.experiment, loaded.decode_batch, name, loaded.hearing)
        report = make_report(loaded.about, {name: rows}, channels)
        scores[name] = report[results.key_of(name, loaded.about)]
        if is_first:
            write_table(folder / f"{name}.tsv", rows)
            write_report(workdir, report)
    if is_first:
        print(f"{score_table(scores)}\nhypotheses and report: {folder}")
    return scores


def score_table(scores: dict[str, dict[str, Any]]) -> str:
    """Scores by shard folder for the eye: rates in percent, with 95 % intervals; BLEU where there is any."""
    names = ["wer", "cer", "mean_wer", "mean_cer"] + ["bleu"] * any("bleu" in row for row in scores.values())
    heads = ["", "clips", "WER %", "CER %", "mean WER %", "mean CER %", "BLEU"]
    rows = [[name, str(row["clips"]), *(_cell(row, x) for x in names)] for name, row in scores.items()]
    return aligned([heads[: len(names) + 2], *rows])


def _cell(scores: dict[str, Any], name: str) -> str:
    if name not in scores:
        return "-"
    percent = 1 if name == "bleu" else 100
    text = f"{percent * scores[name]:.2f}"
    if name not in ("wer", "cer"):
        return text
    low, high = (percent * end for end in scores[f"{name}_interval"])
    return f"{text} ({low:.1f}-{high:.1f})"
