"""Where the articulators are at every frame of an utterance, from its phoneme timings.

A table gives each phoneme its viseme: where the lips, the teeth and the tongue want to be, and how
strongly. The trajectory is the mean of the targets, weighted by strength and by a Gaussian in time (the
dominance model of coarticulation of Cohen and Massaro): lips close fully for /b/ and start to round
before /u/, while /h/ takes the shape of its neighbours.
"""

from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter1d

from viavsp_jax.data.features import FRAME_RATE
from viavsp_jax.prepare.demo.speech import SILENCE, Phoneme
from viavsp_jax.runtime.errors import InputError

_STEPS_PER_SECOND = 200
_SMOOTHING_SECONDS = 0.022  # standard deviation; a step from one target to another takes about 80 ms


class Viseme(NamedTuple):
    """Six targets, 0 to 1 (`width`: -1 pursed to 1 spread), and how strongly they are aimed at.

    `lip_strength` is of opening, tuck (lower lip under the teeth) and press, `mouth_strength` of teeth and
    tongue.
    """

    opening: float
    width: float
    teeth: float = 0.4
    tongue: float = 0.2
    tuck: float = 0.0
    press: float = 0.0
    lip_strength: float = 1.0
    width_strength: float = 1.0
    mouth_strength: float = 1.0


_A = Viseme(1.0, 0.15, teeth=0.45, tongue=0.15)
_SHORT_A = Viseme(0.85, 0.1, teeth=0.45, tongue=0.15)
_EH = Viseme(0.68, 0.6, teeth=0.7, tongue=0.35)
_E = Viseme(0.42, 0.8, teeth=0.8, tongue=0.5)
_CENTRAL_E = Viseme(0.6, 0.4, teeth=0.65, tongue=0.35)
_I = Viseme(0.24, 1.0, teeth=0.95, tongue=0.55)
_UNROUNDED_U = Viseme(0.24, 0.4, teeth=1.0, tongue=0.0)
_U = Viseme(0.16, -1.0, teeth=0.0, tongue=0.0)
_O = Viseme(0.42, -0.85, teeth=0.05, tongue=0.05)
_OPEN_O = Viseme(0.75, -0.6, teeth=0.15, tongue=0.1)
_SCHWA = Viseme(0.4, 0.0, teeth=0.35, tongue=0.2)
_LONG_SCHWA = Viseme(0.48, 0.0, teeth=0.35, tongue=0.2)

_BILABIAL = Viseme(0, 0, teeth=0, press=1, lip_strength=12, width_strength=0.3, mouth_strength=4)
_LABIODENTAL = Viseme(0.2, 0.15, teeth=1, tuck=1, lip_strength=8, width_strength=0.6, mouth_strength=4)
_ALVEOLAR = Viseme(0.3, 0.2, teeth=0.5, tongue=1, lip_strength=1.2, width_strength=0.3, mouth_strength=5)
_LATERAL = _ALVEOLAR._replace(opening=0.45, lip_strength=1.5)
_SIBILANT = Viseme(0.22, 0.5, teeth=1, tongue=0.3, lip_strength=4, mouth_strength=4)
_POSTALVEOLAR = Viseme(0.28, -0.45, teeth=0.9, tongue=0.4, lip_strength=3, width_strength=2, mouth_strength=3)
_PALATAL = Viseme(0.28, 0.6, teeth=0.7, tongue=0.75, lip_strength=1.2, width_strength=0.8, mouth_strength=2)
_VELAR = Viseme(0.38, 0.0, teeth=0.3, tongue=0.0, lip_strength=0.8, width_strength=0.1, mouth_strength=2)
_GLOTTAL = Viseme(0.4, 0.0, lip_strength=0.1, width_strength=0.1, mouth_strength=0.1)
_LABIAL_GLIDE = _U._replace(lip_strength=2, width_strength=2.5)

# A phoneme moves through its visemes at an even pace: one, or two for a diphthong.
VISEMES: dict[str, tuple[Viseme, ...]] = {
    SILENCE: (Viseme(0, 0, teeth=0, press=0.2),),
    "a": (_SHORT_A,),
    "aː": (_A,),
    "aːɪ": (_A, _I),
    "aːʊ": (_A, _U),
    "b": (_BILABIAL,),
    "c": (_PALATAL,),
    "cr": (_POSTALVEOLAR,),
    "e": (_E,),
    "e-": (_CENTRAL_E,),
    "f": (_LABIODENTAL,),
    "h": (_GLOTTAL,),
    "i": (_I,),
    "iɛ": (_I, _EH),
    "j": (_PALATAL._replace(width=0.85, opening=0.24),),
    "k": (_VELAR,),
    "kh": (_VELAR,),  # final /t/ of the central and southern voices, said at the velum
    "l": (_LATERAL,),
    "m": (_BILABIAL,),
    "n": (_ALVEOLAR,),
    "o": (_O,),
    "p": (_BILABIAL,),
    "s": (_SIBILANT,),
    "t": (_ALVEOLAR,),
    "t̪": (_ALVEOLAR,),
    "tʃ": (_POSTALVEOLAR,),
    "u": (_U,),
    "u-": (_U,),
    "uə": (_U, _SCHWA),
    "v": (_LABIODENTAL,),
    "w": (_LABIAL_GLIDE,),
    "y": (_UNROUNDED_U,),  # the letter ư
    "yə": (_UNROUNDED_U, _SCHWA),
    "z": (_SIBILANT,),
    "ŋ": (_VELAR,),
    "ɔ": (_OPEN_O,),
    "ɔ-": (_O, _I),  # southern ôi
    "ə": (_SCHWA,),
    "əɪ": (_SCHWA, _I),
    "ə-": (_LONG_SCHWA, _I),  # southern ơi
    "əː": (_LONG_SCHWA,),
    "ɗ": (_ALVEOLAR,),
    "ɛ": (_EH,),
    "ɣ": (_VELAR,),
    "ɲ": (_PALATAL,),
    "ʐ": (_POSTALVEOLAR,),
    "ʝ": (_PALATAL,),
}


def articulate(phonemes: tuple[Phoneme, ...], num_frames: int) -> np.ndarray:
    """Positions of the articulators at the centre of each frame: float64[T, 6], opening to press of Viseme.

    Raises InputError for a phoneme that the viseme table lacks.
    """
    num_steps = num_frames * _STEPS_PER_SECOND // FRAME_RATE
    table = np.empty((num_steps, len(Viseme._fields)))
    for phoneme in phonemes:
        if phoneme.name not in VISEMES:
            raise InputError(f"phoneme {phoneme.name!r} has no viseme, expected one of {' '.join(VISEMES)}")
        first = round(phoneme.start * _STEPS_PER_SECOND)
        last = max(round(phoneme.end * _STEPS_PER_SECOND), first + 1)
        path = np.array(VISEMES[phoneme.name])
        progress = np.linspace(0, len(path) - 1, len(table[first:last]))[:, None]
        table[first:last] = path[0] + (path[-1] - path[0]) * progress
    targets = table[:, :6]
    # Columns 6, 7, 8 are the strengths of lips, width, mouth; targets: opening width teeth tongue tuck press.
    strengths = table[:, [6, 7, 8, 8, 6, 6]]
    sums = [
        gaussian_filter1d(x, _SMOOTHING_SECONDS * _STEPS_PER_SECOND, axis=0, mode="nearest")
        for x in (targets * strengths, strengths)
    ]
    trajectory = sums[0] / sums[1]
    centres = ((np.arange(num_frames) + 0.5) * _STEPS_PER_SECOND / FRAME_RATE).astype(int)
    return trajectory[centres]
