"""Words of a recording: their times, what two windows hear, and the command that writes them."""

import json

import numpy as np
import pytest
from real_videos import write_wav
from spoken_words import SOUND, Scripted, transcript_of_words

from viavsp_jax import transcribe
from viavsp_jax.app import captions
from viavsp_jax.app.cues import Style
from viavsp_jax.app.recognizer import Hypothesis, Recognition, Word
from viavsp_jax.app.transcriber import Clip, Transcriber, _placed
from viavsp_jax.app.windows import Window


def transcribed(recognizer):
    return Transcriber(recognizer)(Clip(audio=SOUND), vad=False)


@pytest.fixture(scope="module")
def cut():
    """Where SOUND is cut into windows of 75 frames at most: seconds."""
    first, second = transcribed(Scripted()).segments
    assert first.times[1] == second.times[0] and first.end - second.first == 6  # frames that both hear
    return second.times[0]


def test_a_word_that_two_windows_hear_is_there_once(cut):
    script = (
        ("một", 0.2, 0.5, 0.9), ("hai", cut - 0.1, cut + 0.06, 0.4), ("ba", cut + 0.3, cut + 0.6, 0.8),
        ("bốn", 3.5, 3.9, 0.7),
    )  # fmt: skip
    recognizer = Scripted(*script)
    transcript = transcribed(recognizer)
    first, second = transcript.segments
    assert [one.hypotheses[0].text for one in transcript.segments] == ["một hai", "hai ba bốn"]
    assert transcript.text == "một hai ba bốn" and second.text == "ba bốn"
    assert [word.text for word in transcript.words] == transcript.text.split()
    # It ends where its segment does.
    expected = [list(word[1:]) for word in script]
    expected[1][1] = cut
    np.testing.assert_allclose([[word.start, word.end, word.confidence] for word in transcript.words], expected)
    found = captions.render(transcript, "srt", Style(max_line_width=99, max_line_count=1, min_confidence=0.5))
    assert found == "1\n00:00:00,200 --> 00:00:03,900\nmột [hai?] ba bốn\n"
    words = [one["words"] for one in json.loads(captions.render(transcript, "json"))["segments"]]
    assert [[one["word"] for one in part] for part in words] == [["một", "hai"], ["ba", "bốn"]]
    assert words[0][1] == {"word": "hai", "start": round(cut - 0.1, 3), "end": cut, "probability": 0.4}


def test_all_of_a_window_may_be_repeated(cut):
    first, second = transcribed(Scripted(("một", cut - 0.1, cut + 0.06, 0.9))).segments
    assert (first.text, second.text, second.words) == ("một", "", ())


def test_a_model_without_words_leaves_them_out():
    transcript = transcribed(Scripted(("một", 0.2, 0.5, 0.9), knows_words=False))
    assert transcript.text == "một" and transcript.words is None and transcript.segments[0].words is None


def times(words, window):
    return [(word.start, word.end) for word in _placed([Word("a", *word) for word in words], window)]


def test_words_stay_in_their_segment_one_after_the_other():
    window = Window(50, 100, (53, 97), "av")  # from 2.12 s to 3.88 s
    assert times([(0.5, 0.7), (0.7, 1.1)], window) == [(2.5, 2.7), (2.7, 3.1)]
    # What is heard beyond the cuts lasts a frame at least.
    found = times([(0.0, 0.1), (0.1, 0.3), (1.8, 1.9), (1.9, 2.0), (1.95, 2.0)], window)
    np.testing.assert_allclose(found, [(2.12, 2.16), (2.16, 2.3), (3.76, 3.8), (3.8, 3.84), (3.84, 3.88)])
    # More of them than frames.
    found = np.array(times([(1.9, 2.0)] * 88, window))
    np.testing.assert_allclose(found, 2.12 + 0.02 * (np.arange(88)[:, None] + [0, 1]))
    assert times([], window) == []


def test_words_that_are_not_those_of_the_text_are_an_error_of_the_model():
    with pytest.raises(ValueError, match="are not those of 'một hai'"):
        Recognition((Hypothesis("một hai", 0.0),), np.int32([3]), (Word("một", 0, 0.1),))


def test_words_of_a_transcript():
    transcript = transcript_of_words([0, 1, ("một", 0, 0.5, 0.5)], [1, 2], [2, 3, ("hai", 2, 2.5)])
    assert transcript.words == (Word("một", 0, 0.5, 0.5), Word("hai", 2, 2.5))
    assert transcript_of_words().words == ()


@pytest.fixture
def run_command(tmp_path, monkeypatch, capsys):
    """Transcribes SOUND with a recognizer: status, error output, folder."""
    sound = write_wav(tmp_path / "sound.wav", SOUND)

    def run(recognizer, *options):
        monkeypatch.setattr(transcribe, "load_transcriber", lambda args: Transcriber(recognizer))
        monkeypatch.setattr("sys.argv", ["transcribe", str(sound), "--model", "any", "--no_vad", *options])
        with pytest.raises(SystemExit) as status:
            transcribe.main()
        written = capsys.readouterr()
        assert "Traceback" not in written.err
        return status.value.code, written.out, written.err, tmp_path

    return run


SCRIPT = ("một", 0.2, 0.5, 0.9), ("hai", 0.6, 0.8, 0.4), ("ba", 3.4, 3.6, 0.8)


def test_the_commands_options_are_those_of_the_style(run_command):
    for options, form, expected in (
        (["--max_line_width", "7"], "srt", "một hai\n\n2\n00:00:03,400"),
        (["--max_line_width", "3", "--max_line_count", "1"], "srt", "\nmột\n\n2\n00:00:00,600 --> 00:00:00,800\nhai\n"),
        (["--max_words_per_line", "1"], "vtt", "00:00:00.600 --> 00:00:00.800\nhai\n"),
        (["--highlight_words"], "vtt", "\nmột <u>hai</u>\n"),
        (["--word_timestamps"], "vtt", "\nmột <00:00:00.600>hai\n"),
        (["--min_confidence", "0.5"], "txt", "một [hai?]\nba\n"),
        (["--min_confidence", "0.5"], "json", '"doubtful": true'),
    ):
        status, out, _, folder = run_command(Scripted(*SCRIPT), *options, "--format", form)
        assert status == 0 and expected in (folder / f"sound.{form}").read_text(encoding="utf-8"), options
        assert ("  một [hai?]\n" if "--min_confidence" in options else "  một hai\n") in out


def test_a_model_without_words_is_refused_before_work(run_command):
    recognizer = Scripted(*SCRIPT, knows_words=False)
    for options in (["--max_line_width", "7"], ["--highlight_words"], ["--min_confidence", "0"]):
        status, _, error, folder = run_command(recognizer, *options)
        assert (status, recognizer.heard, [path.name for path in folder.iterdir()]) == (2, [], ["sound.wav"])
        name = options[0].removeprefix("--")
        assert error == (
            f"error: the model does not tell when each word is said, which {name} needs: expected one with a CTC head\n"
        )
    status, _, error, folder = run_command(recognizer, "--max_line_count", "2")
    assert status == 0 and "note: max_line_count does nothing without max_line_width" in error
    assert (folder / "sound.srt").exists()


def test_options_out_of_bounds(run_command):
    for option, value, expected in (
        ("--max_line_width", "0", "expected a whole number at least 1"),
        ("--max_line_count", "x", "expected a whole number at least 1"),
        ("--max_words_per_line", "-3", "expected a whole number at least 1"),
        ("--min_confidence", "1.5", "expected a number at least 0 and at most 1"),
    ):
        status, _, error, _ = run_command(Scripted(*SCRIPT), option, value)
        assert (status, error) == (2, f"error: {option} is {value}, {expected}\n")


def test_a_recognizer_that_was_written_before_there_were_words():
    """Others write their own, with what was asked of one then."""

    class Earlier:
        longest, num_beams, trained_on, tokenizer = 75, 1, (), None

        def __call__(self, utterances, languages, num_beams):
            return [Recognition((Hypothesis("một", 0.0),), np.int32([one.num_frames])) for one in utterances]

    transcript = transcribed(Earlier())
    assert transcript.segments[0].text == "một" and transcript.words is None
