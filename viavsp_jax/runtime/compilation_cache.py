"""Compiled programs are kept on disk, so that a restart does not compile them again."""

import os

import jax
from etils import epath


def keep_programs(workdir: epath.PathLike) -> None:
    """Makes JAX keep its programs for later processes; a folder in JAX_COMPILATION_CACHE_DIR wins over both below.

    For a `workdir` in a bucket they lie in its `compilation_cache`, where every host of a slice finds them, and where
    they outlive a machine that is taken away. Otherwise they lie in the user's cache folder, for all runs: a program
    is trusted code, so none is taken from a work folder, which may be somebody else's.
    """
    if jax.config.jax_compilation_cache_dir:
        return
    if "://" in os.fspath(workdir):
        folder = epath.Path(workdir) / "compilation_cache"
    else:
        folder = epath.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "viavsp_jax" / "programs"
    jax.config.update("jax_compilation_cache_dir", os.fspath(folder))
