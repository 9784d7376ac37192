"""Reads one recording in the forms that people have, and real ones; prints what was found of the mouth and the words.

python -m tests.stress.recordings --model runs/demo
"""

import argparse
import pathlib
import sys
import tempfile

import jiwer

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "helpers"))

from real_videos import CARTOON, CUT, PHONE, SPEECH
from recording_variants import VARIANTS, faces, sentences

from viavsp_jax.app.transcriber import Transcriber
from viavsp_jax.prepare.recordings.mouth import NoFace, mouth_crops
from viavsp_jax.prepare.recordings.recording import read_recording
from viavsp_jax.runtime.errors import InputError, reported_to_user
from viavsp_jax.runtime.tables import aligned


def row(path: pathlib.Path, name: str, transcriber: Transcriber, expected: str | None) -> list[str]:
    """Seconds of pictures and of sound, share of the pictures with a mouth, word error rate by the sound."""
    try:
        recording = read_recording(path)
        pictures = mouth = "–"
        if recording.size:
            try:
                track = mouth_crops(recording, least_found=0.0)
                pictures, mouth = f"{len(track.crops) / 25:.1f}", f"{100 * track.found.mean():.0f}"
            except NoFace:
                pictures, mouth = f"{sum(1 for _ in recording.frames()) / 25:.1f}", "0"
        sound, words = "–", "–"
        if recording.samples is not None:
            transcript = transcriber(path, modality="audio")
            sound = f"{len(recording.samples) / 16_000:.1f}"
            words = "–" if expected is None else f"{100 * jiwer.wer(expected, transcript.text or '-'):.0f}"
    except InputError as error:
        return [name, f"refused: {error}", "", "", ""]
    return [name, pictures, sound, mouth, words]


@reported_to_user()
def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="work folder or export; the demo's knows the sentences")
    parser.add_argument("recordings", type=pathlib.Path, nargs="*", help="others, whose words are not known")
    args = parser.parse_args()
    transcriber, (text, samples) = Transcriber.from_pretrained(args.model), sentences()
    pictures = faces(-(-len(samples) // 640))
    rows = [["recording", "pictures s", "sound s", "mouth %", "WER %"]]
    with tempfile.TemporaryDirectory() as folder:
        for variant in VARIANTS:
            path = variant.write(pathlib.Path(folder), pictures, samples)
            rows.append(row(path, variant.name, transcriber, " ".join([text] * variant.repeats)))
            print(*rows[-1], sep="  ", flush=True)
    for path in (SPEECH, PHONE, CUT, CARTOON, *args.recordings):
        rows.append(row(path, path.name, transcriber, None))
    print(aligned(rows))


if __name__ == "__main__":
    main()
