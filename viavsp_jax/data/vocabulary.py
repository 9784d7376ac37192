"""The vocabulary of a training's CTC head: learned from its transcripts, kept in its work folder and in exports."""

import json
from collections.abc import Iterable

from etils import epath
from tokenizers import Tokenizer
from tokenizers.decoders import Metaspace as Joined
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Metaspace
from tokenizers.trainers import UnigramTrainer

from viavsp_jax.data.units import BLANK_NAME, FILE, Units
from viavsp_jax.runtime.atomic import write_bytes
from viavsp_jax.runtime.errors import InputError

_DIGITS = 3  # of log-probabilities


def learn(transcripts: Iterable[str], size: int) -> Units:
    """At most `size` units, by which the words of these texts are written with few of them.

    Raises InputError if there are more letters than that.
    """
    transcripts = list(transcripts)
    letters = {letter for text in transcripts for letter in text if not letter.isspace()}
    if (least := len(letters) + 2) > size:  # with the blank and the mark of a word's beginning; the trainer would hang
        raise InputError(
            f"config.ctc.units is {size}, expected at least {least}, as the {len(letters)} letters of the "
            "transcripts need"
        )
    tokenizer = Tokenizer(Unigram())
    tokenizer.pre_tokenizer, tokenizer.decoder = Metaspace(), Joined()
    trainer = UnigramTrainer(vocab_size=size, special_tokens=[BLANK_NAME], unk_token=BLANK_NAME, show_progress=False)
    tokenizer.train_from_iterator(transcripts, trainer)
    found = json.loads(tokenizer.to_str())
    # Threads add in any order, and letters that are no piece otherwise come last in any, each less likely than the one
    # before: they all get the score of the least likely piece of several letters.
    last = min(
        (score for piece, score in found["model"]["vocab"] if len(piece) > 1 and piece != BLANK_NAME), default=0.0
    )
    pieces = {piece: round(max(score, last), _DIGITS) for piece, score in found["model"]["vocab"]}
    order = sorted(pieces, key=lambda piece: (piece != BLANK_NAME, -pieces[piece], piece))
    found["model"]["vocab"] = [[piece, pieces[piece]] for piece in order]
    return Units(json.dumps(found, ensure_ascii=False))


def read(folder: epath.PathLike, saved: str | None = None) -> Units:
    """Those of a work folder; `saved` is what its checkpoint holds of them, which earlier versions did not.

    Raises InputError if they are missing or damaged.
    """
    if saved is not None:
        return Units(saved)
    path = epath.Path(folder) / FILE
    if not path.exists():
        raise InputError(f"{path}: no such file, expected the units of the CTC head, as training writes them there")
    try:
        return Units(path.read_bytes().decode(errors="replace"), str(path))
    except ValueError as error:
        raise InputError(str(error)) from error


def write(folder: epath.PathLike, units: Units) -> None:
    """Where `read` finds them."""
    write_bytes(epath.Path(folder) / FILE, units.text.encode())
