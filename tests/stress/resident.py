"""The process of tests/stress/soak.py that lives as long as the soak: trains, evaluates, exports, transcribes."""

import contextlib
import io
import os
import pathlib
from multiprocessing.connection import Connection


def live(pipe: Connection, demo: str, workdir: str, updates: int) -> None:
    """Does all of it once for each message that comes, and answers with the size of this process."""
    # Imported here: the process that starts this one has no use for JAX.
    from configs import demo as recipe
    from convert import to_hf
    from viavsp_jax.evaluate import evaluate
    from viavsp_jax.train import train
    from viavsp_jax.transcribe import Transcriber

    config = recipe.get_config()
    config.llm.path, config.data.path = f"{demo}/llm", f"{demo}/shards"
    config.data.rows, config.log_every, config.checkpoint.every = 4, 5, 10
    config.optimizer.decay_updates = 1_000_000
    config.evaluate.names, config.evaluate.rows = ("av_clean",), 50
    config.evaluate.decoding.num_beams, config.evaluate.decoding.max_new_tokens = 2, 24
    clip = next(iter(sorted(pathlib.Path(demo, "corpus", "audio").rglob("*.wav"))))
    while True:
        config.updates = updates * (1 + pipe.recv())
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            train(config, workdir)
            evaluate(config, workdir)
            to_hf.export(workdir, f"{workdir}/export")
            Transcriber.from_pretrained(workdir)(str(clip))
        pipe.send(size())


def size() -> dict[str, float]:
    """Resident memory in MB, threads and open files of this process (Linux)."""
    fields = dict(
        line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    )
    return {
        "rss_mb": round(int(fields["VmRSS"].split()[0]) / 1024),
        "threads": int(fields["Threads"]),
        "files": len(os.listdir("/proc/self/fd")),
    }
