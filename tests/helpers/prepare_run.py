"""Run by test_shards_jax.py: the prepare command on a machine without PyTorch and scikit-learn.

python tests/helpers/prepare_run.py STAGE …
"""

import sys
from importlib.machinery import PathFinder

MISSING = {"torch", "sklearn"}


class CoreFinder(PathFinder):
    """Finds what is installed there."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in MISSING else super().find_spec(name, path, target)


if __name__ == "__main__":
    sys.meta_path = [CoreFinder if finder is PathFinder else finder for finder in sys.meta_path]
    from viavsp_jax.prepare.__main__ import main

    main(sys.argv[1:])
    assert not MISSING & set(sys.modules)
