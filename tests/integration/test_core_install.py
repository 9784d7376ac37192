"""The core trains and decodes with nothing of the extras installed: no PyTorch, no TensorFlow."""

import subprocess
import sys
import textwrap

from small_run import make_llm, make_shards

SCRIPT = """
    import sys
    from importlib.machinery import PathFinder

    EXTRAS = {"torch", "tensorflow", "sklearn", "peft", "espeakng_loader", "ray", "dlib", "gradio"}

    class CoreFinder(PathFinder):
        '''Finds what the core install has.'''

        @classmethod
        def find_spec(cls, name, path=None, target=None):
            return None if name.split(".")[0] in EXTRAS else super().find_spec(name, path, target)

    sys.meta_path = [CoreFinder if finder is PathFinder else finder for finder in sys.meta_path]
    sys.meta_path = [finder for finder in sys.meta_path if "editable" not in str(finder)]
    sys.path.insert(0, ".")

    from configs import demo
    from viavsp_jax import evaluate, train

    llm, shards, workdir = sys.argv[1:]
    config = demo.get_config()
    config.llm.path, config.data.path, config.data.feature_width = llm, shards, 12
    config.data.train = config.evaluate.names = ("av_clean",)
    config.data.row.update({"positions": 128, "frames": 96})
    config.updates = config.checkpoint.every = 1
    train.train(config, workdir)
    evaluate.evaluate(config, workdir)
    assert not EXTRAS & set(sys.modules)
"""


def test_trains_and_decodes_without_the_extras(tmp_path):
    make_shards(tmp_path / "shards" / "av_clean")
    arguments = [make_llm(tmp_path / "llm"), tmp_path / "shards", tmp_path / "work"]
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "work" / "report.json").exists()
