"""Python reads this in every process that the tests start, since conftest.py puts its folder into PYTHONPATH.

The garbage collector seldom goes through the libraries, and not at the end: it saves seconds of each process.
"""

import atexit
import gc

gc.set_threshold(200_000, 20, 20)
atexit.register(gc.freeze)
