"""Work items on the machines of a Ray cluster: a pool of worker processes that outlives the death of its members.

Plain actors of Ray's core are all this needs. Ray Data, which moves tables between stages, has nothing to move here,
since the work writes files; and there one item that cannot be done ends all others. Ray's own retries are not used:
they call the same actor again, and when its machine is lost all are spent within seconds, before Ray knows.
"""

import argparse
import functools
import itertools
import logging
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from viavsp_jax.runtime.errors import InputError

_ATTEMPTS = 4  # at an item whose worker died; the cause may be the item itself

Item = TypeVar("Item")
Result = TypeVar("Result")


def add_arguments(parser: argparse.ArgumentParser, local: str, ray: str) -> None:
    """The options of a stage that can work on a cluster; `local` and `ray` say who does the work."""
    parser.add_argument(
        "--runner", choices=["local", "ray"], default="local", help=f"local: {local}; ray: {ray} (default local)"
    )
    parser.add_argument(
        "--ray_address",
        help="of a running cluster: host:port, or auto for the one of this machine (default: starts Ray here)",
    )


class _Worker:
    """One process of the cluster."""

    def __init__(self, make: Callable[[], Callable], folder: str):
        self._make, self._folder = make, folder

    @functools.cached_property
    def _work(self) -> Callable:
        try:
            if not os.path.isdir(self._folder):
                raise InputError(f"{self._folder}: no such folder, expected the one that the command was called in.")
            os.chdir(self._folder)  # relative paths mean the same here
            return self._make()
        except InputError as error:
            raise InputError(f"machine {socket.gethostname()}: {error}") from error

    def do(self, item: Any) -> Any:
        """The result, or the InputError that says why there is none; raises one if no item can be done here."""
        work = self._work
        try:
            return work(item)
        except InputError as error:
            return error


def map_unordered(
    make: Callable[[], Callable[[Item], Result]],
    items: Iterable[Item],
    *,
    address: str,
    max_workers: int | None = None,
    cpus: int = 1,
    gpu: bool = False,
) -> Iterator[tuple[Item, Result | InputError]]:
    """Calls `make()` once in each worker, and what it returns with one item after the other.

    An item whose worker dies is done again, so doing it twice has to be as good as once.

    Args:
      make: pickled, as are items and results.
      items: taken when there is a worker for them.
      address: of a running cluster, host:port or auto; local starts Ray on this machine until all is done.
      max_workers: how many there are at most; None: as many as the machines have room for.
      cpus: what each worker reserves; numerical libraries start as many threads.
      gpu: whether each also takes a GPU, if the cluster has any.

    Yields:
      (item, its result) as they are done; or, if the work raised InputError or its worker died too often, the error.

    Raises:
      InputError: Ray is not installed, not there or too small, or `make` raised it on one of the machines.
    """
    ray = _connect(address)
    try:
        gpus = int(gpu and "GPU" in ray.cluster_resources())
        count = _room(ray, cpus, gpus)
        start = ray.remote(num_cpus=cpus, num_gpus=gpus)(_Worker).remote
        items, running = iter(items), {}

        def give(item: Item, worker: Any = None, attempt: int = 1) -> None:
            worker = worker or start(make, os.getcwd())
            running[worker.do.remote(item)] = item, worker, attempt

        for item in itertools.islice(items, count if max_workers is None else max_workers):
            give(item)
        while running:
            (done,), _ = ray.wait(list(running), num_returns=1)
            item, worker, attempt = running.pop(done)
            result = _result(ray, done)
            if isinstance(result, ray.exceptions.RayError):
                worker = None
                if attempt < _ATTEMPTS:
                    give(item, attempt=attempt + 1)
                    continue
                reason = str(result).strip().splitlines()[0]
                result = InputError(f"its worker died {attempt} times ({type(result).__name__}: {reason})")
            for following in itertools.islice(items, 1):
                give(following, worker)
            del worker  # without work it ends, which makes room for one that may be waiting for it
            yield item, result
    finally:
        ray.shutdown()


def _connect(address: str) -> Any:
    """The module ray, connected. Raises InputError if it is not installed or does not answer."""
    # Read when Ray is imported: it would report its use over the network.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray  # here, because only who asks for a cluster needs it
    except ImportError as error:
        raise InputError(f"Ray is not installed ({error}), expected pip install 'viavsp-jax[cluster]'.") from error
    local = {"include_dashboard": False} if address == "local" else {}
    try:
        if address not in ("local", "auto"):
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), timeout=10).close()  # Ray itself would try for many minutes
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **local)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[-1]
        raise InputError(f"the Ray cluster {address} cannot be used, expected one that runs ({reason}).") from error
    return ray


def _room(ray: Any, cpus: int, gpus: int) -> int:
    """How many workers the machines have room for. Raises InputError if there is none for one."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    wanted = {name: number for name, number in {"CPU": cpus, "GPU": gpus}.items() if number}
    room = sum(min(int(has.get(name, 0) // number) for name, number in wanted.items()) for has in machines)
    if not room:
        largest = max((has.get("CPU", 0) for has in machines), default=0)
        raise InputError(
            f"a worker reserves {cpus} CPUs and {gpus} GPUs, but none of the {len(machines)} machines of the Ray "
            f"cluster has so many (the largest: {largest:g} CPUs), expected fewer."
        )
    return room


def _result(ray: Any, done: Any) -> Any:
    """What the work returned or, if its worker died, Ray's error. Raises what the work raised."""
    try:
        return ray.get(done)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise error.cause from error
        raise
    except ray.exceptions.RayError as error:
        return error
