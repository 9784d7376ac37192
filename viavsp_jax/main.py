"""The command: python -m viavsp_jax.main --config=configs/demo.py --workdir=runs/demo [--mode=…]."""

import sys

from absl import app, flags, logging

from viavsp_jax import config_file
from viavsp_jax.runtime.errors import InputError, reported_to_user
from viavsp_jax.runtime.startup import quick_imports

_CONFIG = config_file.define("File with the settings, e.g. configs/final.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for checkpoints, TensorBoard files and reports (gs:// works).")
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "calibrate", "eval", "check", "compile", "describe"],
    "train: train or continue. check: only look for what would keep it from training, with --topology for memory and "
    "hours, too. calibrate: on the validation split, choose the weight of the CTC head and learn how sure words are. "
    "eval: decode and score. compile: see whether --config fits --topology, and how fast. "
    "describe: show how the checkpoints of --workdir were made; needs no --config.",
)
_STEP = flags.DEFINE_string(
    "step", "best", "Checkpoint that eval and calibrate decode with: best, latest or the number of an update."
)
_TOPOLOGY = flags.DEFINE_string("topology", None, "TPU slice to compile for: v5e:2x4, or 2xv5e:2x4 for two of them.")
_OUTPUT = flags.DEFINE_string("output", None, "File for the report of compile or describe, as JSON (gs:// works).")

# The hosts of a TPU slice find each other without these.
_COORDINATOR = flags.DEFINE_string("coordinator", None, "Several processes: host:port of the first, the same for all.")
_PROCESSES = flags.DEFINE_integer("processes", None, "Several processes: how many there are.")
_PROCESS = flags.DEFINE_integer("process", None, "Several processes: which one this is, from 0.")

_NEEDED = {
    "train": (_CONFIG, _WORKDIR),
    "calibrate": (_CONFIG, _WORKDIR),
    "eval": (_CONFIG, _WORKDIR),
    "check": (_CONFIG, _WORKDIR),
    "compile": (_CONFIG, _TOPOLOGY),
    "describe": (_WORKDIR,),
}


def main(argv: list[str]) -> None:
    """Runs the mode asked for; wrong input ends with one sentence instead of a traceback."""
    with reported_to_user():
        if len(argv) > 1:
            raise InputError(f"unexpected argument {argv[1]}: settings are given as --config.name=value")
        for flag in _NEEDED[_MODE.value]:
            if not flag.value:
                raise InputError(f"--{flag.name} is not set, which --mode={_MODE.value} needs")
        # Imported here so that --help and a mistyped flag answer at once.
        with quick_imports():
            from viavsp_jax.aot.compile import compile_for
            from viavsp_jax.calibrate import calibrate
            from viavsp_jax.check import check
            from viavsp_jax.describe import describe
            from viavsp_jax.evaluate import evaluate
            from viavsp_jax.runtime import distributed
            from viavsp_jax.runtime.atomic import check_utf_8, check_writable
            from viavsp_jax.runtime.backends import start_devices
            from viavsp_jax.runtime.compilation_cache import keep_programs
            from viavsp_jax.runtime.options import checkpoint_step
            from viavsp_jax.train import train

        # Orbax and TFDS report every file they touch; what a user wants to know is printed.
        logging.set_verbosity(logging.WARNING)
        # And Orbax with stacks what it raises anyway.
        logging.get_absl_handler().addFilter(lambda record: "orbax" not in record.pathname)
        check_utf_8(_WORKDIR.value or "", "--workdir")
        if _OUTPUT.value:
            check_writable(_OUTPUT.value, "--output")
        if _MODE.value == "compile":
            sys.exit(0 if compile_for(_CONFIG.value, _TOPOLOGY.value, _OUTPUT.value) else 1)
        if _MODE.value == "describe":
            return describe(_WORKDIR.value, _OUTPUT.value)
        if _MODE.value != "check" or not _TOPOLOGY.value:  # else it is about devices that are not here
            distributed.initialize(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
            start_devices()
        if _MODE.value == "check":
            sys.exit(0 if check(_CONFIG.value, _WORKDIR.value, _TOPOLOGY.value) else 1)
        keep_programs(_WORKDIR.value)
        if _MODE.value == "eval":
            evaluate(_CONFIG.value, _WORKDIR.value, checkpoint_step(_STEP.value))
        elif _MODE.value == "calibrate":
            calibrate(_CONFIG.value, _WORKDIR.value, checkpoint_step(_STEP.value))
        else:
            train(_CONFIG.value, _WORKDIR.value)


def run() -> None:
    """The command, with the arguments of this process."""
    with reported_to_user():
        # absl explains the flags of the file that was started, which may be a script that imports this one.
        for flag in flags.FLAGS.get_flags_for_module(__name__):
            flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
        try:
            app.run(main, flags_parser=config_file.parse)
        except SystemExit as end:  # absl shows --help by itself, and calls it a failure
            sys.exit(0 if {"--help", "--helpfull"} & {*sys.argv} else end.code)


if __name__ == "__main__":
    run()
