"""The packages `configs` and `convert`, which are installed beside this one, whatever the working folder holds.

Python looks at the working folder first (`python -m`), and then at that of a file of settings: a folder of somebody's
own with one of these names would be taken for ours.
"""

import importlib.util
import pathlib
import sys
from importlib.machinery import PathFinder

_BESIDE = pathlib.Path(__file__).parents[2]
CONFIGS = _BESIDE / "configs"


def bind() -> None:
    """Lets both names mean ours in this process; in what a program has imported before, ours are found, too."""
    for name in ("configs", "convert"):
        if name not in sys.modules:
            spec = PathFinder.find_spec(name, [str(_BESIDE)])
            sys.modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[name])
        else:
            _search_too(name, _BESIDE / name)


def share_configs(folder: pathlib.Path) -> None:
    """Lets `from configs import ...` find the files of a folder `configs` of somebody's own, after ours."""
    if folder.name == "configs":
        _search_too("configs", folder)


def _search_too(name: str, folder: pathlib.Path) -> None:
    places = [*getattr(sys.modules[name], "__path__", ())]
    if str(folder) not in places:
        sys.modules[name].__path__ = [*places, str(folder)]
