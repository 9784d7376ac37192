"""What is where on the page, and what happens when something is pressed."""

import html
import json
import pathlib
from collections.abc import Sequence

import gradio as gr
from gradio.components import Component
from gradio.i18n import I18nData

from viavsp_jax import demo_models
from viavsp_jax.app import captions
from viavsp_jax.app.inputs import USED
from viavsp_jax.app.page import answers, language
from viavsp_jax.app.page.gate import MAX_FILE_SIZE
from viavsp_jax.app.page.vietnamese import GRADIO
from viavsp_jax.app.recognizer import Recognizer
from viavsp_jax.app.transcriber import Transcriber

FOLDER = pathlib.Path(__file__).parent
EXAMPLE = FOLDER / "example.mp4"  # a test clip of the demo corpus: a drawn mouth and a synthetic voice
TITLE = "ViAVSP: Vietnamese from lips and sound"
_MAX_WAITING = 20  # visitors
_MAX_BEAMS = 10
_DEMO_TOKENIZER = pathlib.Path(demo_models.__file__).parent / "llama" / "tokenizer.json"
_HIDDEN = json.dumps({"__type__": "update", "visible": False})  # what Gradio calls an update

# On a phone, results are below what is seen.
_SHOW_RESULTS = "() => document.querySelector('#results')?.scrollIntoView({behavior: 'smooth', block: 'nearest'})"


class Labels:
    """What stands on the page from the start, which Gradio translates in the browser; see front.py, too."""

    def __init__(self):
        # Gradio uses this key, but has no words for it.
        self.i18n = gr.I18n(en={"common.complete": "Complete"}, vi=dict(GRADIO))
        self(TITLE)

    def __call__(self, sentence: str, **values: object) -> I18nData:
        """Of a sentence of vietnamese.py."""
        english = language.say(sentence, "en", **values)
        for one, words in self.i18n.translations.items():
            words[english] = language.say(sentence, one, **values)
        return self.i18n(english)


def build(transcriber: Transcriber, max_minutes: float, labels: Labels) -> gr.Blocks:
    """The page, for server.serve; recordings of more than `max_minutes` are refused."""
    with gr.Blocks(title=TITLE, analytics_enabled=False) as blocks:
        gr.HTML(f"<h1>{labels(TITLE)}</h1>", elem_id="title")
        gr.HTML(f"{_knowledge(transcriber.recognizer, labels)}", elem_id="knowledge")
        with gr.Row():
            with gr.Column(scale=3, min_width=300):
                video, sound = _inputs(labels)
                example = gr.Button(labels("Try an example"), size="sm", elem_id="example")
            with gr.Column(scale=2, min_width=300):
                modality = _modality(labels)
                button = gr.Button(labels("Transcribe"), variant="primary", elem_id="transcribe")
                message = gr.HTML(elem_id="message")
                alone = gr.Button(labels("Go on with sound alone"), visible=False, elem_id="alone")
                advanced = _advanced(transcriber.recognizer.num_beams, labels)
        results, shown, pictures = _results(labels)
        size = MAX_FILE_SIZE // 10**6
        limits = "Up to {minutes} minutes and {size} MB. What you send is removed within an hour."
        gr.HTML(f"{labels(limits, minutes=f'{max_minutes:g}', size=size)}", elem_id="foot")

        # The last that is given counts.
        gr.on([video.upload, video.stop_recording], None, None, sound, js="() => null", api_visibility="private")
        gr.on([sound.upload, sound.stop_recording], None, None, video, js="() => null", api_visibility="private")
        example.click(lambda: (EXAMPLE, None), None, [video, sound], api_visibility="private")
        given, told = [video, sound, modality, *advanced], [message, results, alone]
        _on_press(transcriber, max_minutes, button, alone, given, told, shown)
        _on_video(max_minutes, message, *pictures)
    return blocks.queue(max_size=_MAX_WAITING, api_open=False)


def _knowledge(recognizer: Recognizer, labels: Labels) -> I18nData | str:
    """What the model knows: a sentence, or nothing."""
    if recognizer.tokenizer.exists() and recognizer.tokenizer.read_bytes() == _DEMO_TOKENIZER.read_bytes():
        return labels("The demo model knows only 156 syllables of made-up sentences.")
    names = html.escape(", ".join(recognizer.trained_on))
    return labels("The model was trained on {names}.", names=names) if names else ""


def _inputs(labels: Labels) -> tuple[gr.Video, gr.Audio]:
    with gr.Tabs():
        with gr.Tab(labels("Video")):
            video = gr.Video(
                sources=["upload", "webcam"], include_audio=True, show_label=False, buttons=[], elem_id="recording"
            )
        with gr.Tab(labels("Sound")):
            sound = gr.Audio(
                sources=["upload", "microphone"], type="filepath", show_label=False, buttons=[], elem_id="sound"
            )
    return video, sound


def _modality(labels: Labels) -> gr.Radio:
    choices = [("automatic", answers.AUTOMATIC), *((words, modality) for modality, words in USED.items())]
    return gr.Radio(
        [(labels(words), value) for words, value in choices], value=answers.AUTOMATIC, label=labels("What is used"),
        elem_id="modality",
    )  # fmt: skip


def _advanced(num_beams: int, labels: Labels) -> list[Component]:
    """Whether to add noise and how much, beams."""
    with gr.Accordion(labels("Advanced"), open=False, elem_id="advanced"):
        noisy = gr.Checkbox(label=labels("Add babble to the sound"), elem_id="noisy")
        # page.css shows it where it counts: the queue is for transcripts.
        snr = gr.Slider(-10, 20, value=0, step=1, label=labels("Signal-to-noise ratio, dB"), elem_id="snr")
        beams = gr.Slider(
            1, max(_MAX_BEAMS, num_beams), value=num_beams, step=1, label=labels("Beams of the search"),
            elem_id="beams",
        )  # fmt: skip
    return [noisy, snr, beams]


def _results(labels: Labels) -> tuple[gr.Column, list[Component], tuple[gr.State, gr.Button, gr.Video]]:
    """The part that a transcript makes visible, what `answers` fills of it, and what the subtitled video needs."""
    with gr.Column(visible=False, elem_id="results") as results:
        with gr.Row():
            with gr.Column(scale=4, min_width=300):
                follow = (FOLDER / "page.js").read_text(encoding="utf-8")
                transcript = gr.HTML(elem_id="transcript", js_on_load=follow, apply_default_css=False)
            with gr.Column(scale=1, min_width=240, elem_id="side"):
                gr.HTML(f"{labels('As the model sees it')}", elem_id="seen", elem_classes="caption")
                mouth = gr.Video(show_label=False, height=250, buttons=[], elem_id="mouth")
                gr.HTML(f"{labels('Download')}", elem_classes="caption")
                with gr.Row(elem_id="downloads"):
                    files = [
                        gr.DownloadButton(form.upper(), size="sm", min_width=40, elem_id=f"download_{form}")
                        for form in captions.FORMATS
                    ]
                kept = gr.State(time_to_live=answers.KEPT_FOR)
                make = gr.Button(labels("Make the subtitled video"), size="sm", elem_id="make")
                subtitled = gr.Video(
                    label=labels("Video with subtitles"), visible=False, buttons=["download"], elem_id="subtitled"
                )
    return results, [transcript, mouth, kept, make, subtitled, *files], (kept, make, subtitled)


def _on_press(
    transcriber: Transcriber,
    max_minutes: float,
    button: gr.Button,
    alone: gr.Button,
    given: Sequence[Component],
    told: Sequence[Component],
    shown: Sequence[Component],
) -> None:
    """Transcribes where a button is pressed, after what is left of the press before is gone."""

    def event(request: gr.Request, *values, progress=gr.Progress()):  # noqa: B008  Gradio wants it so
        spoken = language.of(request)
        yield from answers.transcribe(transcriber, max_minutes, spoken, *values, progress=progress)

    # At once, in the browser: the press may have to wait for others.
    clear = f"() => ['', {_HIDDEN}, {_HIDDEN}]"
    options = {
        "fn": event, "inputs": list(given), "outputs": [*told, *shown], "show_progress_on": told[0],
        "concurrency_limit": 1, "concurrency_id": "work", "api_visibility": "private",
    }  # fmt: skip
    button.click(None, None, list(told), js=clear, api_visibility="private")
    follow = {"fn": None, "js": _SHOW_RESULTS, "api_visibility": "private"}
    button.click(**options).then(**follow)
    chosen = alone.click(None, None, [*told, given[2]], js=f"{clear}.concat('audio')", api_visibility="private")
    chosen.then(**options).then(**follow)


def _on_video(max_minutes: float, message: gr.HTML, kept: gr.State, make: gr.Button, subtitled: gr.Video) -> None:
    def event(request: gr.Request, transcribed, progress=gr.Progress()):  # noqa: B008  Gradio wants it so
        spoken = language.of(request)
        yield from answers.subtitle(transcribed, max_minutes, spoken, progress)

    make.click(
        event, kept, [message, make, subtitled], show_progress_on=make, concurrency_limit=1, concurrency_id="work",
        api_visibility="private",
    )  # fmt: skip
