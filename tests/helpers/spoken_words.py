"""Transcripts with words, and a recognizer that says what a script has it say, when it does."""

import numpy as np

from viavsp_jax.app.recognizer import Hypothesis, Recognition, Word
from viavsp_jax.app.transcriber import Segment, Transcript

# No number twice: any part of the sound is known by its first one. Four seconds, loud all the time.
SOUND = np.random.default_rng(0).permutation(np.arange(-32_000, 32_000)).astype(np.int16)


def transcript_of_words(*spoken, recording=None):
    """One of segments, each [start, end, (word, start, end, confidence), …], all times in seconds of the recording."""
    segments = []
    for start, end, *words in spoken:
        first, last = round(25 * start), round(25 * end)
        words = tuple(Word(*word) for word in words)
        hypotheses = (Hypothesis(" ".join(word.text for word in words), -0.5),)
        lengths = np.int32([last - first])
        segments.append(Segment(first, last, hypotheses, lengths, "audio", (first, last), words=words))
    num_frames = segments[-1].end if segments else 1
    return Transcript(tuple(segments), "audio", num_frames, None, None, recording, None)


class Scripted:
    """A recognizer that hears of (word, start, end, confidence), in seconds of SOUND, those that begin in a window."""

    num_beams, knows_lost_video = 1, False

    def __init__(self, *script, longest=75, knows_words=True):
        self.script, self.longest, self.knows_words, self.heard = script, longest, knows_words, []

    def __call__(self, utterances, languages, num_beams):
        return [self._recognition(one) for one in utterances]

    def _recognition(self, utterance):
        [place] = np.flatnonzero(SOUND == utterance.samples[0])
        start = place / 16_000
        end = start + utterance.num_frames / 25
        self.heard.append((round(25 * start), round(25 * end)))
        words = [
            Word(text, one - start, other - start, sure) for text, one, other, sure in self.script if start <= one < end
        ]
        text = " ".join(word.text for word in words)
        return Recognition(
            (Hypothesis(text, 0.0),), np.int32([utterance.num_frames]), tuple(words) if self.knows_words else None
        )
