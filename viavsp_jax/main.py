"""The command: python -m viavsp_jax.main --config=configs/demo.py --workdir=runs/demo [--mode=train|eval]."""

from absl import app, flags, logging
from ml_collections import config_flags

from viavsp_jax.errors import reported_to_user

_CONFIG = config_flags.DEFINE_config_file("config", None, "File with the settings, e.g. configs/final.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for checkpoints, TensorBoard files and reports (gs:// works).")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "eval"], "train: train or continue. eval: decode and score.")


def main(argv: list[str]) -> None:
    """Runs the mode asked for; wrong input ends with one sentence instead of a traceback."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]}: settings are given as --config.name=value")
    # Imported here so that --help and a mistyped flag answer at once.
    from viavsp_jax.evaluate import evaluate
    from viavsp_jax.train import train

    # Orbax and TFDS report every file they touch; what a user wants to know is printed.
    logging.set_verbosity(logging.WARNING)
    with reported_to_user():
        {"train": train, "eval": evaluate}[_MODE.value](_CONFIG.value, _WORKDIR.value)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
