"""Vietnamese audio-visual speech recognition with an LLM, in JAX."""

from viavsp_jax.runtime import paths  # noqa: F401  mends etils before anything asks it

__version__ = "0.1.0"

import sys

if sys.argv[:1] == ["-m"]:  # a command of this package or of convert is about to be loaded
    from viavsp_jax.runtime.interrupts import report_interrupts

    report_interrupts()
