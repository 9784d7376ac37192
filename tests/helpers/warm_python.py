"""A Python that has imported the large libraries already: each command is a fork of one process, not a new start.

    python warm_python.py serve SOCKET          waits for commands until it is killed
    python -S warm_python.py SOCKET -m NAME ...  runs one, as `python -m NAME ...`; also -c CODE

The command gets the caller's standard streams, folder, environment and signals; the caller ends with its status.
"""

import json
import os
import select
import signal
import socket
import sys

LIBRARIES = (
    *("jax", "flax.nnx", "optax", "orbax.checkpoint", "grain", "tensorflow_datasets", "torch", "peft", "cv2", "jiwer"),
    *("transformers.models.llama.modeling_llama", "tensorboardX", "clu.metrics", "matplotlib.figure"),
)
STREAMS = {"stdin": "r", "stdout": "w", "stderr": "w"}


def call(address: str, arguments: list[str]) -> int:
    """Has the server run a command; its exit status."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        request = json.dumps({"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}).encode()
        socket.send_fds(server, [len(request).to_bytes(4)], range(len(STREAMS)))
        server.sendall(request)
        process = int.from_bytes(server.recv(4))
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda number, frame: os.kill(process, number))
        return int.from_bytes(server.recv(4))


def serve(address: str) -> None:
    """Forks for each caller a process that waits for its command, and tells how that ended."""
    import gc
    import importlib

    for name in LIBRARIES:
        importlib.import_module(name)
    gc.freeze()  # or each command would look through all of it when it ends
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        while True:
            caller, _ = server.accept()
            with caller:
                if os.fork() == 0:
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    attend(caller)
                    os._exit(0)


def attend(caller: socket.socket) -> None:
    """One command, from the request to its status."""
    size, streams, _, _ = socket.recv_fds(caller, 4, len(STREAMS))
    request = b""
    while len(request) < int.from_bytes(size):
        request += caller.recv(1 << 16)
    process = os.fork()
    if process == 0:
        for number, (name, mode) in enumerate(STREAMS.items()):
            os.dup2(streams[number], number)
            setattr(sys, name, open(number, mode, buffering=1, closefd=False))
        run(**json.loads(request))
    for stream in streams:
        os.close(stream)  # whoever reads from the command waits for all that could write there
    caller.sendall(process.to_bytes(4))
    while not (ended := os.waitpid(process, os.WNOHANG))[0]:
        if select.select([caller], [], [], 0.02)[0] and not caller.recv(1):  # the caller was killed
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return
    caller.sendall((os.waitstatus_to_exitcode(ended[1]) % 256).to_bytes(4))


def run(arguments: list[str], folder: str, environment: dict[str, str]) -> None:
    """What Python does with its command line; raises SystemExit, which ends this process as it would end any."""
    import runpy

    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    kind, what, *rest = arguments
    sys.argv, sys.path[0] = ["-c" if kind == "-c" else what, *rest], folder
    if kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(what, {"__name__": "__main__"})
    sys.exit()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        sys.exit(call(sys.argv[1], sys.argv[2:]))
