"""The one exception that means: the input is wrong, not the program. And what a full or a locked disk looks like."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator

# The disk is full, over a quota, failing, read-only or not this user's.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM)
# Something of another kind is where a file or a folder is to be.
_OTHER_KIND = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP)


class InputError(Exception):
    """Bad input. The message is one sentence that names the file, the record and what was expected."""


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
    """Wraps a command: bad input or a disk without room ends it with one sentence and status 2, not a traceback.

    Ctrl-C likewise, with status 130.
    """
    try:
        yield
    except InputError as error:
        _end(str(error))
    except KeyboardInterrupt:
        print("stopped by Ctrl-C: what was finished before is kept", file=sys.stderr)
        sys.exit(130)  # 128 and the number of the signal
    except Exception as error:
        if trouble := disk_trouble(error):
            _end(
                f"{trouble}, expected a disk with room that can be written to; what was finished before is kept, and "
                "the same command goes on from there"
            )
        if isinstance(error, OSError) and error.errno in _OTHER_KIND and error.filename:
            _end(f"{error.filename}: {error.strerror}, expected a place where a file or a folder can be made")
        raise


def _end(sentence: str) -> None:
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)
