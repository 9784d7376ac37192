"""The exceptions that mean: the input is wrong, not the program. And what a full or a locked disk looks like."""

import contextlib
import errno
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

from viavsp_jax.runtime.buckets import bucket_trouble
from viavsp_jax.runtime.interrupts import STOPPED
from viavsp_jax.runtime.startup import end_quickly

# The disk is full, over a quota, failing, read-only or not this user's.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM)
# Something of another kind is where a file or a folder is to be.
_OTHER_KIND = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP)

RIGHTS = (
    "expected a bucket that exists, which this machine's account may look up, and whose objects it may read, write and "
    "delete"
)


class InputError(Exception):
    """Bad input. The message is one sentence that names the file, the record and what was expected."""

    @property
    def sentences(self) -> tuple[str, ...]:
        """One for each thing that is wrong."""
        return (str(self),)


class InputErrors(InputError):
    """Several things that are wrong, each said in a sentence; a command shows them as a list."""

    def __init__(self, sentences: Sequence[str]):
        super().__init__("; ".join(sentences))
        self._sentences = tuple(sentences)

    @property
    def sentences(self) -> tuple[str, ...]:
        return self._sentences


def check_all(checks: Iterable[Callable[[], object]]) -> None:
    """Runs all of these checks, whichever of them fail; raises InputErrors that lists what is wrong."""
    found: list[str] = []
    for check in checks:
        try:
            check()
        except InputError as error:
            found += error.sentences
    if found:
        raise InputErrors(found)


def disk_trouble(error: BaseException | None) -> str | None:
    """What an error, or one that it came from, says of a disk that cannot be written to; None if nothing."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        # Libraries in C++ raise errors of their own with the system's words in them.
        for code in _NO_ROOM:
            if os.strerror(code) in str(error):
                return os.strerror(code)
        error = error.__cause__ or error.__context__
    return None


@contextlib.contextmanager
def reported_to_user() -> Iterator[None]:
    """Around a command, its options included: `@reported_to_user()` stands above every `main`.

    Bad input, a disk without room or a bucket that refuses ends it with one sentence and status 2, not a traceback, and
    so does Ctrl-C, with status 130. What the terminal's encoding cannot show, of names or of text, is shown escaped.
    Where what is printed goes to `head` or `less`, it ends when they do.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a notebook's is none
            stream.reconfigure(errors="backslashreplace")
    end_quickly()
    try:
        with _while_it_is_read():
            yield
    except InputError as error:
        _end(*error.sentences)
    except KeyboardInterrupt:
        print(STOPPED, file=sys.stderr)
        sys.exit(130)  # 128 and the number of the signal
    except Exception as error:
        if trouble := disk_trouble(error):
            _end(
                f"{trouble}, expected a disk with room that can be written to; what was finished before is kept, and "
                "the same command goes on from there"
            )
        if trouble := bucket_trouble(error):
            _end(f"{trouble}, {RIGHTS}; what was finished before is kept")
        if isinstance(error, OSError) and error.errno in _OTHER_KIND and error.filename:
            _end(f"{error.filename}: {error.strerror}, expected a place where a file or a folder can be made")
        if isinstance(error, UnicodeEncodeError):
            _end(_of_a_name(error))
        raise


@contextlib.contextmanager
def _while_it_is_read() -> Iterator[None]:
    """Ends the program without a word where the other end of a pipe that it prints to was closed."""
    try:
        try:
            yield
        except SystemExit:  # of --help
            print(end="", flush=True)
            raise
        print(end="", flush=True)
    except BrokenPipeError:
        try:
            print(flush=True)  # what failed may not be kept, and then there is nothing to be flushed
        except BrokenPipeError:
            # Python prints what is left at its end, and would tell once more that nobody reads it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)  # 128 and the number of the signal
        raise  # another pipe's


def _of_a_name(error: UnicodeEncodeError) -> str:
    """Text is written as UTF-8 everywhere, so only names of files are of an encoding that lacks a character."""
    name = ascii(error.object[max(0, error.start - 99) : error.end + 99])
    if error.reason == "surrogates not allowed":
        return f"the name {name} holds bytes that are not UTF-8, expected names in UTF-8"
    return (
        f"{name} cannot be the name of a file in this locale, whose encoding is {error.encoding}: expected one of "
        "UTF-8, as LC_ALL=C.UTF-8 is"
    )


def _end(*sentences: str) -> None:
    several = "".join(f"\n  - {one}" for one in sentences)
    text = sentences[0] if len(sentences) == 1 else f"{len(sentences)} things are wrong:{several}"
    print(f"error: {text}", file=sys.stderr)
    sys.exit(2)
