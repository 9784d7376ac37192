"""Vietnamese audio-visual speech recognition with an LLM, in JAX."""

import sys

from viavsp_jax.runtime import buckets, companions, interrupts, paths, renamed

__version__ = "0.1.0"

paths.mend_globs()  # before anything asks etils
buckets.read_afresh()
renamed.accept_old_names()
companions.bind()

# A command of this package or of convert is about to be loaded.
if sys.argv[:1] == ["-m"] or interrupts.on_path():
    interrupts.report_interrupts()
