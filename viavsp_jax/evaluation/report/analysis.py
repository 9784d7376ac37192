"""What goes wrong, and where: the scores of one shard folder, taken apart.

Recognition is compared, text in the language that is spoken; translation is scored by BLEU. Rows of hypotheses hold id,
reference and hypothesis, and may hold source_language, target_language (else: recognition), seconds and positions.
"""

import collections
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from viavsp_jax.data.ids import id_text
from viavsp_jax.evaluation import scoring
from viavsp_jax.evaluation.report import confidence
from viavsp_jax.evaluation.report.conditions import condition
from viavsp_jax.evaluation.scoring import AlignedWord, Counts
from viavsp_jax.evaluation.vietnamese import TONES, Syllable, difference, spoken_form

Row = Mapping[str, Any]

# What `difference` may give.
DIFFERENCES = ("tone", "onset", "rhyme", "onset+tone", "rhyme+tone", "onset+rhyme", "onset+rhyme+tone")
MOST_CONFUSED, WORST, BEST = 20, 10, 5
# Where groups of clips by length begin.
_SECONDS, _WORDS = (0, 2, 4, 6, 8, 12), (1, 6, 11, 16, 21, 31)
_NO_CHANNEL = "not in the mapping"


def score(rows: Sequence[Row]) -> dict[str, Any]:
    """`clips`, the rates of those that are recognised and BLEU of those that are translated.

    Where there are any: what `scoring.rates` gives, what `scoring.score_translation` gives, and `translated_clips`;
    and `ctc_wer` with its interval, of what a CTC head makes of the frames by itself.
    """
    recognised, translated = by_task(rows)
    result = {}
    if recognised:
        result |= scoring.score(*_texts(recognised))
        if all("ctc" in row for row in recognised):
            alone = scoring.score([row["reference"] for row in recognised], [row["ctc"] for row in recognised])
            result |= {f"ctc_{name}": alone[name] for name in ("wer", "wer_interval")}
    if translated:
        result |= scoring.score_translation(*_texts(translated)) | {"translated_clips": len(translated)}
    return result | {"clips": len(rows)}


def analyse(name: str, rows: Sequence[Row], channels: Mapping[str, str]) -> dict[str, Any]:
    """The errors of the clips that are recognised in one shard folder, all but `condition` by their spoken form.

    Returns:
      condition: see `conditions.condition`.
      positions_per_second: what the language model reads of these clips, on average; missing where that is not known.
      confidence: how far words are right as often as they are told to be, see `confidence.Reliability`, of text as
        written; missing where nothing tells it.
      spoken_form: rates of these clips. What follows is missing where there are none.
      lengths: {unit: seconds or words, groups: [{from, to, and rates}]}; `to` is None in the last, and not part of it.
      channels: [{channel, and rates}], the worst first; missing without a mapping.
      differences: number of substitutions by the parts that two syllables differ in (DIFFERENCES).
      tones: int[6][6], how often the tone of a row (in the order of TONES) was heard as that of a column.
      confused: [{reference, hypothesis, count}]; deleted, inserted: [{word, count}]; the most frequent first.
      worst, best: clips by their WER: [{id, wer, words}], words being pairs of reference and hypothesis.
    """
    rows, result = by_task(rows)[0], {"condition": condition(name)}
    if not rows:
        return result
    seconds, positions = ([float(row.get(name) or 0) for row in rows] for name in ("seconds", "positions"))
    if all(seconds) and all(positions):
        result["positions_per_second"] = sum(positions) / sum(seconds)
    if reliability := confidence.of_rows(rows):
        result["confidence"] = reliability.as_json()
    # What is left of a reference must not be empty: a rate is errors by its words.
    references = [spoken_form(row["reference"]) or scoring.normalize(row["reference"]) for row in rows]
    counts, clips = scoring.align(references, [spoken_form(row["hypothesis"]) for row in rows])
    result |= {"spoken_form": scoring.rates(counts), "lengths": _by_length(rows, counts)}
    if channels:
        names = [channels.get(id_text(row["id"]), _NO_CHANNEL) for row in rows]
        by_channel = _grouped(counts, names, lambda name: {"channel": name})
        result["channels"] = sorted(by_channel, key=lambda group: (-group["wer"], group["channel"]))
    return result | _by_words([pair for clip in clips for pair in clip]) | _extremes(rows, counts, clips)


def by_task(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """(recognised, translated)"""
    same = [row.get("source_language") == row.get("target_language") for row in rows]
    return tuple(
        [row for row, is_same in zip(rows, same, strict=True) if is_same == wanted] for wanted in (True, False)
    )


def _texts(rows: Sequence[Row]) -> tuple[list[str], list[str]]:
    return [row["reference"] for row in rows], [row["hypothesis"] for row in rows]


def _grouped(counts: Counts, keys: Sequence[Hashable], named: Callable[[Any], dict[str, Any]]) -> list[dict[str, Any]]:
    """Rates of the clips with equal keys, by key; `named` tells how a key is written."""
    members = collections.defaultdict(list)
    for clip, key in enumerate(keys):
        members[key].append(clip)
    return [named(key) | scoring.rates(counts[np.array(members[key])]) for key in sorted(members)]


def _by_length(rows: Sequence[Row], counts: Counts) -> dict[str, Any]:
    timed = all(row.get("seconds") for row in rows)
    starts = _SECONDS if timed else _WORDS
    lengths = [float(row["seconds"]) for row in rows] if timed else counts.words[:, :3].sum(1)
    places = (np.searchsorted(starts, lengths, side="right") - 1).tolist()
    ends = [*starts[1:], None]
    groups = _grouped(counts, places, lambda place: {"from": starts[place], "to": ends[place]})
    return {"unit": "seconds" if timed else "words", "groups": groups}


def _by_words(pairs: Sequence[AlignedWord]) -> dict[str, Any]:
    frequent = collections.Counter(pairs).most_common()  # of equals, the first to occur comes first
    confused = [(pair, count) for pair, count in frequent if all(pair) and pair[0] != pair[1]]
    differences = dict.fromkeys(DIFFERENCES, 0)
    for pair, count in confused:
        differences[difference(*pair)] += count
    order = list(TONES.values())
    tones = np.zeros((len(order), len(order)), int)
    for pair, count in frequent:
        if all(pair):
            tones[tuple(order.index(Syllable.of_word(word).tone) for word in pair)] += count
    deleted = [{"word": reference, "count": count} for (reference, hypothesis), count in frequent if not hypothesis]
    inserted = [{"word": hypothesis, "count": count} for (reference, hypothesis), count in frequent if not reference]
    return {
        "differences": differences,
        "tones": tones.tolist(),
        "confused": [{"reference": r, "hypothesis": h, "count": n} for (r, h), n in confused[:MOST_CONFUSED]],
        "deleted": deleted[:MOST_CONFUSED],
        "inserted": inserted[:MOST_CONFUSED],
    }


def _extremes(rows: Sequence[Row], counts: Counts, clips: Sequence[list[AlignedWord]]) -> dict[str, Any]:
    """Of equal rates, the clips with most errors are the worst, and those with most words the best."""
    errors, words = counts.errors()[:, :2].T
    rate, ids = errors / words, [row["id"] for row in rows]
    worst = sorted(range(len(rows)), key=lambda clip: (-rate[clip], -errors[clip], ids[clip]))[:WORST]
    others = sorted(set(range(len(rows))) - set(worst), key=lambda clip: (rate[clip], -words[clip], ids[clip]))

    def described(clip: int) -> dict[str, Any]:
        return {"id": ids[clip], "wer": float(rate[clip]), "words": clips[clip]}

    return {"worst": [described(x) for x in worst], "best": [described(x) for x in others[:BEST]]}
