"""Vietnamese audio-visual speech recognition with an LLM, in JAX."""

import sys

from viavsp_jax.runtime import buckets, paths, renamed

__version__ = "0.1.0"

paths.mend_globs()  # before anything asks etils
buckets.read_afresh()
renamed.accept_old_names()

if sys.argv[:1] == ["-m"]:  # a command of this package or of convert is about to be loaded
    from viavsp_jax.runtime.interrupts import report_interrupts

    report_interrupts()
