"""Which columns of a table hold what: by the names that people give them, or as --columns says."""

from collections.abc import Mapping, Sequence

from viavsp_jax.runtime.errors import InputError

# What a clip has, and how columns of it are called.
NAMES = {
    "id": ("id", "utt_id", "utterance_id", "sample_id", "clip_id"),
    "video": ("video", "video_path", "file_name", "path", "file", "mp4"),
    "audio": ("audio", "audio_path", "wav"),
    "text": ("text", "transcript", "transcription", "sentence", "label", "txt"),
    "split": ("split", "subset", "set"),
    "speaker": ("speaker", "speaker_id", "client_id", "source", "channel"),
}
NEEDED = ("video", "text")


def parse(options: Sequence[str] | None) -> dict[str, str]:
    """`id=…,video=…` as given by --columns. Raises InputError for what is not of this form."""
    chosen: dict[str, str] = {}
    for part in ",".join(options or ()).split(",") if options else ():
        what, equals, name = part.strip().partition("=")
        if what not in NAMES or not equals or not name or what in chosen:
            raise InputError(
                f"--columns has {part!r}, expected each of {', '.join(NAMES)} at most once, as text=COLUMN."
            )
        chosen[what] = name
    return chosen


def choose(there: Sequence[str], chosen: Mapping[str, str], where: str) -> dict[str, str]:
    """{what: column}, as chosen or by name. Raises InputError if one that is needed or chosen is not there."""
    found, plain = dict(chosen), {str(name).strip().lower(): name for name in reversed(there)}
    for what, names in NAMES.items():
        if what not in found and (name := next((name for name in names if name in plain), None)):
            found[what] = plain[name]
    if wrong := [name for name in chosen.values() if list(there).count(name) != 1]:
        raise InputError(
            f"{where}: columns {wrong} are missing or there twice, found {', '.join(map(str, there))!r:.200}."
        )
    if missing := [what for what in NEEDED if what not in found]:
        raise InputError(
            f"{where}: none of its columns is known to hold {' or '.join(missing)}, expected "
            f"--columns {','.join(f'{what}=COLUMN' for what in missing)}, of {', '.join(map(str, there))!r:.200}."
        )
    return found


def described(found: Mapping[str, str]) -> str:
    """For people: what was taken from where."""
    return ", ".join(f"{what} from {name!r}" for what, name in found.items())
