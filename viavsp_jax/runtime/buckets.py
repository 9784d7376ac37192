"""Buckets of Google Cloud Storage: how they are read, and what they answer when something is wrong with them.

Three libraries open gs:// paths: gcsfs for etils, and in C++ those in tensorstore (arrays) and in ArrayRecord (shards
are read there). Each has errors of its own.
"""

import os
import re
import traceback

# Listings are not kept: they would lack what the other libraries and the other hosts of a slice have written since.
_SETTINGS = {"FSSPEC_GS": '{"use_listings_cache": false}', "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
_PYTHON = ("aiohttp.", "gcsfs.", "google.api_core.", "google.auth.", "google.cloud.")
# What those in C++ say, and at its end the answer, which is of no use to anybody.
_CPP = re.compile(r"^(NOT_FOUND|PERMISSION_DENIED|UNAUTHENTICATED|UNAVAILABLE|RESOURCE_EXHAUSTED)\b.*\[http_", re.S)
_ANSWER = re.compile(r"\s*\[http_\w+=.*", re.S)


def read_afresh() -> None:
    """Settles, before fsspec and gcsfs are imported, how they read; what the environment says already stays."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)


def bucket_trouble(error: BaseException | None) -> str | None:
    """What an error, or one that it came from, says of a bucket; None if nothing."""
    while error is not None:
        if isinstance(error, ImportError) and "gcsfs" in str(error):
            return "gs:// paths need the package gcsfs, which is not installed: pip install gcsfs"
        if _CPP.search(str(error)):
            return " ".join(_ANSWER.sub("", str(error)).split())[:300]
        if type(error).__module__.startswith(_PYTHON) or _raised_by_gcsfs(error):
            said = " ".join(str(error).split())[:300]
            if not isinstance(error, FileNotFoundError):
                return said
            if "/o/" not in said:  # else it is an object that is missing
                return "there is no bucket of this name"
        error = error.__cause__ or error.__context__
    return None


def _raised_by_gcsfs(error: BaseException) -> bool:
    """Whether one of the general kinds of errors, as OSError is, comes from there."""
    last = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)][-1:]
    return any(name.startswith("gcsfs.") for name in last)
