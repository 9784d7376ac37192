"""Transcribes recordings of a speaking face: videos of any kind and length, or sound alone.

    python -m viavsp_jax.transcribe FILE... --model runs/demo

or, from Python,

    from viavsp_jax.transcribe import Transcriber
    transcript = Transcriber.from_pretrained("runs/demo")("clip.mp4")
    print(transcript.text, [(segment.times, segment.text) for segment in transcript.segments])

and, with a model that tells when each word is said,

    from viavsp_jax.transcribe import Style, render
    print([(word.text, word.start, word.end, word.confidence) for word in transcript.words])
    print(render(transcript, "vtt", Style(max_line_width=42, max_line_count=2, min_confidence=0.5)))
"""

import argparse
import dataclasses
import functools
import logging
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from tqdm import tqdm

from viavsp_jax.app import needs_extra
from viavsp_jax.data.examples import MODALITIES
from viavsp_jax.data.prompt import LANGUAGES
from viavsp_jax.runtime.atomic import write_bytes
from viavsp_jax.runtime.errors import InputError, reported_to_user
from viavsp_jax.runtime.options import Renamed, checkpoint_step, real, whole
from viavsp_jax.runtime.startup import quiet_libraries

with needs_extra(__name__):
    from viavsp_jax.app.captions import FORMATS, render, segment_text
    from viavsp_jax.app.cues import Style, needs_words
    from viavsp_jax.app.files import outputs, recordings_in
    from viavsp_jax.app.inputs import USED
    from viavsp_jax.app.pictures import write_sheet, write_video
    from viavsp_jax.app.recognizer import Word
    from viavsp_jax.app.transcriber import MAX_SNR, Clip, Segment, Transcriber, Transcript
    from viavsp_jax.data.features import FRAME_RATE
    from viavsp_jax.prepare.recordings.mouth import load_mean_face
    from viavsp_jax.prepare.recordings.voice import THRESHOLD
    from viavsp_jax.rules import DTYPES, MAX_BEAMS

__all__ = ["Clip", "Segment", "Style", "Transcriber", "Transcript", "Word", "render"]


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """The options that say which model is used; shared with the web page."""
    parser.add_argument("--model", required=True, help="work folder of a training, or an export of convert.to_hf")
    parser.add_argument(
        "--step", type=checkpoint_step, default="best", help="checkpoint of a work folder: best, latest or a number"
    )
    parser.add_argument("--llm", help="path of the language model, if it has moved since training")
    parser.add_argument("--encoder", help="path of the encoder that made the shards, if it has moved")
    parser.add_argument("--kmeans", help="path of the centres that made the shards, if they have moved")
    parser.add_argument("--device", help="of an export: cpu, cuda or cuda:N (default: cuda if there is one)")
    parser.add_argument("--dtype", choices=DTYPES, help="for computation (default: as in training)")
    parser.add_argument(
        "--compression",
        metavar="TEXT",
        help="how frames become positions: clusters, clusters+max:K or pool:K (default: as the model's config decodes)",
    )
    parser.add_argument(
        "--server", metavar="URL", help="of a vLLM server of the export's merged/, which decodes (default: none)"
    )
    parser.add_argument(
        "--batch_size", type=whole("--batch_size", 1), default=8, help="windows decoded at a time (default 8)"
    )
    parser.add_argument(
        "--mean_face", help=".npy file with AV-HuBERT's mean face, to cut mouths out exactly as it does"
    )


def load_transcriber(args: argparse.Namespace) -> Transcriber:
    """The model that the options ask for. Raises InputError if it is not usable."""
    return Transcriber.from_pretrained(
        args.model,
        step=args.step,
        llm=args.llm,
        encoder=args.encoder,
        kmeans=args.kmeans,
        device=args.device,
        dtype=args.dtype,
        server=vars(args).get("server"),  # callers may leave the newer options out
        compression=vars(args).get("compression"),
        batch_size=args.batch_size,
        mean_face=args.mean_face and load_mean_face(args.mean_face),
    )


def add_subtitle_options(parser: argparse.ArgumentParser) -> None:
    """The options that make a Style."""
    for name, meaning in (
        ("max_line_width", "most characters of a line of subtitles (default: a subtitle is one line)"),
        ("max_line_count", "most lines of a subtitle, with --max_line_width (default: all of a segment)"),
        ("max_words_per_line", "most words of a subtitle (default: all of a segment)"),
    ):
        parser.add_argument(f"--{name}", type=whole(f"--{name}", 1), metavar="N", help=meaning)
    parser.add_argument(
        "--highlight_words", action="store_true", help="mark each word of the subtitles while it is spoken"
    )
    parser.add_argument("--word_timestamps", action="store_true", help="in vtt, when each word is said")
    parser.add_argument(
        "--min_confidence",
        type=real("--min_confidence", at_least=0, at_most=1),
        metavar="P",
        help="mark words that are less likely right as [word?] (default: none)",
    )


def style_of(args: argparse.Namespace) -> Style:
    """What the options of `add_subtitle_options` say; callers may leave them out."""
    return Style(**{one.name: vars(args).get(one.name, one.default) for one in dataclasses.fields(Style)})


def transcribe_file(
    transcriber: Transcriber, file: Path, paths: dict[str, Path], args: argparse.Namespace, style: Style
) -> tuple[Transcript, list[Path]]:
    """Transcribes one file and writes what is asked for and can be. Returns also which of `paths` were written."""
    bar = tqdm(total=100, bar_format="{desc}{percentage:3.0f} %|{bar}| {elapsed}", leave=False)

    def show(what: str, share: float) -> None:
        bar.set_description(f"{file.name}: {what}", refresh=False)  # tqdm adds a colon
        bar.n = round(100 * share)
        bar.refresh()

    given = vars(args)  # callers of `run` may leave the newer options out
    with bar:
        show("reading the file", 0.0)
        transcript = transcriber(
            file, modality=args.modalities, num_beams=args.num_beams, noise_snr=args.noise_snr,
            vad_threshold=given.get("vad_threshold"), vad=given.get("vad", True), languages=(args.source, args.target),
            audio_track=given.get("audio_track"), progress=show,
        )  # fmt: skip
        lacks = lacking(transcript, paths)
        written = {form: path for form, path in paths.items() if form not in lacks}
        for form, path in written.items():
            write_output(transcript, form, path, style, functools.partial(show, "writing the video"))
    if lacks:
        why = "only its sound was used" if transcript.recording.size else "it is sound only"
        print(f"note: {file}: {why}, so there is no {' and no '.join(lacks.values())}", file=sys.stderr)
    return transcript, list(written.values())


def lacking(transcript: Transcript, forms: Iterable[str]) -> dict[str, str]:
    """What the file lacks for some of `outputs`, by their names; there need be nothing wrong with it."""
    there = {"video": transcript.recording.size, "sheet": transcript.mouth}
    needed = {"video": "picture to write subtitles on (--video)", "sheet": "mouth to show (--mouths)"}
    return {form: what for form, what in needed.items() if form in forms and there[form] is None}


def write_output(
    transcript: Transcript, form: str, path: Path, style: Style, progress: Callable[[float], None]
) -> None:
    """Writes one of `outputs`, whole or not at all; `progress` is given the share of a video that is written.

    Raises InputError where the disk or the name does not allow it, or the transcript lacks what `style` needs.
    """
    try:
        if form == "video":
            write_video(transcript, path, progress, style)
        elif form == "sheet":
            write_sheet(transcript, path)
        else:
            write_bytes(path, render(transcript, form, style).encode())
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}), expected a folder with room for it") from error


def print_transcript(transcript: Transcript, style: Style) -> None:
    """The text with its times, and what of the recording was used."""
    if transcript.note:
        print(f"note: {transcript.note}", file=sys.stderr)
    for segment in transcript.segments:
        start, end = segment.times
        print(f"{start:8.2f} – {end:7.2f}  {segment_text(segment, style)}")
    used = ", ".join(f"{seconds:.1f} s by {USED[modality]}" for modality, seconds in transcript.seconds.items())
    print(f"speech: {used}" if used else "speech: none was found")


def run(args: argparse.Namespace) -> int:
    """Transcribes all files; one that cannot be is reported, and the others are done. Returns the exit status."""
    files = recordings_in(args.files)
    paths = outputs(files, args.output, args.format, args.video, args.mouths)
    style = style_of(args)
    transcriber = load_transcriber(args)
    if style.needing_words and not getattr(transcriber.recognizer, "knows_words", False):
        raise needs_words(style)
    if style.unused:
        print(f"note: {style.unused}", file=sys.stderr)
    start, seconds, failed = time.monotonic(), 0.0, 0
    for file in files:
        try:
            transcript, written = transcribe_file(transcriber, file, paths[file], args, style)
        except InputError as error:
            if len(files) == 1:
                raise
            print(f"error: {error}", file=sys.stderr)
            failed += 1
            continue
        seconds += transcript.num_frames / FRAME_RATE
        print_transcript(transcript, style)
        print("→ " + ", ".join(map(str, written)))
    spent = time.monotonic() - start
    if seconds:
        print(f"{seconds:.1f} s of recording in {spent:.1f} s: real-time factor {spent / seconds:.2f}")
    if failed:
        print(f"{failed} of {len(files)} files could not be transcribed", file=sys.stderr)
    return 2 if failed else 0


@reported_to_user()
def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m viavsp_jax.transcribe",
        description=__doc__.split("\n")[0],
        epilog="The face is found by dlib's landmark model, which was trained on iBUG 300-W: no commercial use.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="video or audio file, or a folder with such files")
    add_model_options(parser)
    parser.add_argument("--format", nargs="+", choices=FORMATS, default=["srt"], help="files to write (default: srt)")
    parser.add_argument("--output", metavar="DIR", help="where to write them (default: beside the input)")
    parser.add_argument("--video", action="store_true", help="also write a copy with subtitles and the mouth's box")
    parser.add_argument("--mouths", action="store_true", help="also write a picture of the mouth as the model sees it")
    add_subtitle_options(parser)
    parser.add_argument(
        "--modalities",
        choices=MODALITIES,
        help="what to use of all of the file: lips and sound, sound, or lips (default: what can be heard and seen "
        "where somebody speaks)",
    )
    parser.add_argument(
        "--vad_threshold",
        type=real("--vad_threshold", at_least=0.01, at_most=0.99),
        default=THRESHOLD,
        metavar="P",
        help=f"probability of speech from which on sound is transcribed (default {THRESHOLD:g})",
    )
    parser.add_argument(
        "--no_vad", "--no-vad", dest="vad", action="store_false", help="transcribe all of the file, pauses too"
    )
    parser.add_argument(
        "--audio_track", type=whole("--audio_track", 1), metavar="N", help="of several (default: the first with sound)"
    )
    parser.add_argument("--source", choices=LANGUAGES, default="vi", help="language that is spoken (default vi)")
    parser.add_argument("--target", choices=LANGUAGES, default="vi", help="language of the text (default vi)")
    parser.add_argument(
        "--num_beams",
        type=whole("--num_beams", 1, MAX_BEAMS),
        help="beams of the search (default: as in the model's config)",
    )
    parser.add_argument(
        "--noise_snr",
        "--noise-snr",
        action=Renamed,
        type=real("--noise_snr", at_least=-MAX_SNR, at_most=MAX_SNR),
        metavar="DB",
        help="add babble at this signal-to-noise ratio, to try the model",
    )
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    quiet_libraries()
    sys.exit(run(args))


if __name__ == "__main__":
    main()
