"""How well the times of words are found, on voices that the model has not heard.

    python -m tests.stress.word_times --model runs/demo --corpus runs/demo/corpus

The corpus is that of `prepare demo` in the layout of VASR, which knows when its synthesizer says each word. Words that
are recognised are compared with those that are said; for these, start and end by the model with those of the corpus.
"""

import argparse
import json
from pathlib import Path

import jiwer
import numpy as np
import pandas as pd
from tqdm import tqdm

from viavsp_jax.data import media
from viavsp_jax.data.examples import MODALITIES
from viavsp_jax.runtime.tables import aligned
from viavsp_jax.transcribe import Clip, Transcriber


def errors(transcriber: Transcriber, corpus: Path, modality: str, split: str) -> tuple[np.ndarray, int, int]:
    """Seconds by which words begin and end too late [W, 2]; how many words are out of order or place; words in all."""
    table = pd.read_parquet(corpus / "metadata.parquet")
    found, wrong, total = [], 0, 0
    for row in tqdm(list(table[table.split == split].itertuples()), desc=modality):
        place = f"{row.shard}/{row.id}"
        video = None if modality == "audio" else media.read_video(corpus / "visual" / f"{place}.mp4")
        audio = None if modality == "video" else media.read_audio(corpus / "audio" / f"{place}.wav")
        said = json.loads((corpus / "words" / f"{place}.json").read_bytes())
        for segment in transcriber(Clip(video, audio), modality=modality, vad=False).segments:
            times = np.array([(word.start, word.end) for word in segment.words]).reshape(-1, 2)
            start, end = segment.times
            wrong += int(
                (np.diff(times.ravel()) < -1e-6).sum() + (times < start - 1e-6).sum() + (times > end + 1e-6).sum()
            )
            total += len(times)
            found += _of_same_words(said, segment.words)
    return np.array(found), wrong, total


def _of_same_words(said: list, words: tuple) -> list[tuple[float, float]]:
    if not words:
        return []
    output = jiwer.process_words(" ".join(word for word, _, _ in said), " ".join(word.text for word in words))
    pairs = [
        (said[one.ref_start_idx + i], words[one.hyp_start_idx + i])
        for one in output.alignments[0]
        if one.type == "equal"
        for i in range(one.ref_end_idx - one.ref_start_idx)
    ]
    return [(word.start - start, word.end - end) for (_, start, end), word in pairs]


def main() -> None:
    """Prints a line for each modality."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--split", default="test")
    args = parser.parse_args()
    transcriber = Transcriber.from_pretrained(args.model)
    rows = [["", "words", "start: median ms", "90 %", "within 120 ms %", "end: median ms", "out of order or place"]]
    for modality in MODALITIES:
        late, wrong, total = errors(transcriber, args.corpus, modality, args.split)
        starts, ends = 1000 * np.abs(late).T
        rows.append([
            modality, str(len(late)), f"{np.median(starts):.0f}", f"{np.quantile(starts, 0.9):.0f}",
            f"{100 * np.mean(starts <= 120):.1f}", f"{np.median(ends):.0f}", f"{wrong} of {total}",
        ])  # fmt: skip
    print(aligned(rows))


if __name__ == "__main__":
    main()
