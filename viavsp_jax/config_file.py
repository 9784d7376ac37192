"""The settings as the command line gives them: --config=FILE and --config.NAME=VALUE, each mistake in one sentence.

FILE is a path, or the name of one of the files in `configs`: final, or final:reference.
"""

import collections
import difflib
import importlib.machinery
import importlib.util
import pathlib
import re
import sys
import traceback
from collections.abc import Sequence

import ml_collections
from absl import flags
from ml_collections import config_flags

from viavsp_jax.runtime.companions import CONFIGS, share_configs
from viavsp_jax.runtime.errors import InputError


def define(
    help_text: str, values: flags.FlagValues = flags.FLAGS, argv: Sequence[str] | None = None
) -> flags.FlagHolder[ml_collections.ConfigDict]:
    """Defines --config among the flags `values`: the ConfigDict of a file, with what `argv` changes of it.

    Without `argv` the arguments of this process are looked at.
    """
    holder = config_flags.DEFINE_config_file("config", None, help_text, flag_values=values, sys_argv=argv)
    values["config"].parser = _ConfigFile()
    return holder


def parse(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Parses the flags; returns the other arguments. Raises InputError for a mistake in one of them."""
    try:
        rest = values(argv)
    except flags.Error as error:
        if not any(re.match("--?config(=|$)", argument) for argument in argv) and "--config." in " ".join(argv):
            raise InputError("--config is not set, expected a file whose settings --config.NAME changes") from error
        raise InputError(" ".join(str(error).split())) from error
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        # As ml_collections answers a setting that does not exist.
        raise InputError(_unknown_setting(argv) or " ".join(str(error).split())) from error
    _check_repeated(argv, values)
    return rest


def _check_repeated(argv: Sequence[str], values: flags.FlagValues) -> None:
    """ml_collections joins tuples that are given several times; who gives another means it in place of the first."""
    given = collections.defaultdict(list)
    for argument in argv:
        if match := re.match(r"--?(config\.[^=]+)=(.*)", argument, re.DOTALL):
            given[match[1]].append(match[2])
    for name, texts in given.items():
        whole = any(text[:1] in ("(", "[") or "," in text for text in texts)
        if len(texts) > 1 and whole and isinstance(values[name], flags.MultiFlag):
            raise InputError(f"--{name} is given as {' and as '.join(texts)}, expected one tuple")


def _unknown_setting(argv: Sequence[str]) -> str | None:
    """What is wrong with the first setting among the arguments that does not exist; None if all do."""
    from viavsp_jax.rules import TABLE, no_setting  # imports the models, which a right command does later

    sections = {name.rsplit(".", depth)[0] for name in TABLE for depth in range(1, name.count(".") + 1)}
    for argument in argv:
        match = re.match(r"--?(?:no)?config\.([^=]+)", argument)
        if match and match[1] not in TABLE.keys() | sections:
            return no_setting(f"config.{match[1]}", [f"config.{name}" for name in TABLE])
    return None


class _ConfigFile(flags.ArgumentParser):
    """Runs a file and calls its get_config, with what stands behind a colon as its argument."""

    def parse(self, path: str) -> ml_collections.ConfigDict:
        file, _, variant = (path, "", "") if pathlib.Path(path).is_file() else path.partition(":")
        file = file if pathlib.Path(file).is_file() else _shipped().get(file)
        if not file:
            raise InputError(f"--config is {path}: no such file, {_nearest(path)}")
        # For what it imports.
        folder = pathlib.Path(file).resolve().parent
        sys.path[:0] = [str(_top(folder))]
        share_configs(folder)
        try:
            loader = importlib.machinery.SourceFileLoader("config_file", file)
            module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
            loader.exec_module(module)
            config = module.get_config(*[variant] * bool(variant))
        except (Exception, SystemExit) as error:  # of somebody's own Python
            lines = [
                f"line {frame.lineno}: "
                for frame in traceback.extract_tb(error.__traceback__)
                if frame.filename == file
            ]
            what = " ".join(f"{type(error).__name__}: {error}".split())
            raise InputError(f"{path}: {lines[-1] if lines else ''}{what}") from error
        if not isinstance(config, ml_collections.ConfigDict):
            raise InputError(
                f"{path}: get_config() returns {type(config).__name__}, expected an ml_collections.ConfigDict"
            )
        return config.lock()

    def flag_type(self) -> str:
        return "file of settings"


def _top(folder: pathlib.Path) -> pathlib.Path:
    """The folder that the outermost package around a folder lies in; the folder itself if it is no package."""
    while (folder / "__init__.py").exists():
        folder = folder.parent
    return folder


def _shipped() -> dict[str, str]:
    """The files of settings that come with this package, by the names that --config knows them by."""
    return {file.stem: str(file) for file in sorted(CONFIGS.glob("[!_]*.py"))}


def _nearest(path: str) -> str:
    """What may have been meant by a path, or a name, of which there is no file."""
    file, shipped = path.partition(":")[0], _shipped()
    neighbours = map(str, sorted(pathlib.Path(file).parent.glob("[!_]*.py"))) if file else ()
    near = difflib.get_close_matches(file, [*neighbours, *shipped], n=1)
    near = near or difflib.get_close_matches(pathlib.Path(file).stem, shipped, n=1)
    if near:
        return f"did you mean {near[0]}?"
    return f"expected a file with get_config(), or one of {', '.join(shipped)}"
