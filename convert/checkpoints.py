"""Safe reading of fairseq checkpoints, without fairseq or omegaconf: see convert/torch_archive.py."""

import contextlib
import dataclasses
from collections.abc import Collection, Iterator
from typing import Any

import torch
from etils import epath

from convert.torch_archive import TENSORS, Storages, opened
from convert.unpickle import StandIn
from viavsp_jax.runtime.errors import InputError

NAMESPACE = "argparse.Namespace"

# Whatever fairseq and omegaconf name is a class of settings or bookkeeping; a stand-in serves for all of them.
ALLOWED = TENSORS | {NAMESPACE, "typing.Any", "fairseq.", "omegaconf."}

# Far more than any checkpoint has; the reference's hold some ten thousand.
_MOST_SETTINGS = 500_000

# State that is no parameter: the optimizer does not count it.
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


@dataclasses.dataclass(frozen=True)
class FairseqCheckpoint:
    """What a fairseq checkpoint holds of use.

    Attributes:
      model: parameter name -> tensor on the CPU, in the dtype of the file; all finite.
      cfg: settings as nested dict, list, str, int, float, bool and None, by fairseq's names. The flat `args`
        of old checkpoints are given as both cfg["model"] and cfg["task"].
      num_updates: updates made so far; None where the file does not say.
    """

    model: dict[str, torch.Tensor]
    cfg: dict[str, Any]
    num_updates: int | None


@dataclasses.dataclass(frozen=True)
class AdamMoments:
    """Adam's running means of some parameters: name -> tensor in the parameter's shape.

    Attributes:
      step: updates that they were gathered in.
      exp_avg, exp_avg_sq: of the gradients and of their squares.
    """

    step: int
    exp_avg: dict[str, torch.Tensor]
    exp_avg_sq: dict[str, torch.Tensor]


def read_fairseq(path: epath.PathLike) -> FairseqCheckpoint:
    """Reads the model and the settings of a fairseq checkpoint; optimizer state stays on disk.

    Raises InputError if the file is missing, damaged, no such checkpoint, names anything not allowed, or holds
    a weight that is not finite.
    """
    with _opened(path) as (content, storages):
        model = storages.tensors(content["model"])
        return FairseqCheckpoint(model, _settings(content, str(path)), _num_updates(content))


def read_moments(path: epath.PathLike, names: Collection[str]) -> AdamMoments | str:
    """Reads Adam's moments of the named parameters, or says in a few words why the file does not give them.

    fairseq stores them by the parameter's place among all that are trained, or, for training in half precision, as
    one vector for all of them. Both are matched to names by the order of the model and checked by shape or size.

    Raises InputError for the same files as read_fairseq does.
    """
    with _opened(path) as (content, storages):
        sizes = {name: torch.Size(record.args[2]) for name, record in content["model"].items()}
        optimizer = content.get("last_optimizer_state")
        if not isinstance(optimizer, dict) or not optimizer.get("state"):
            return "it holds no optimizer state"
        order = [index for group in optimizer["param_groups"] for index in group["params"]]
        parameters = [name for name in sizes if name.rpartition(".")[2] not in BUFFERS]
        # Either everything was handed to the optimizer, or only what was wanted here.
        for trained in (parameters, [name for name in parameters if name in names]):
            if order == [0] and len(trained) > 1:
                states = _flat_states(optimizer["state"][0], trained, sizes)
            elif len(order) == len(trained):
                states = {name: optimizer["state"].get(i) for i, name in zip(order, trained, strict=True)}
            else:
                continue
            if states is not None:
                return _moments({name: states.get(name) for name in names}, sizes, storages)
        return f"its optimizer state is for {len(order)} parameters, which cannot be told apart by the model's names"


def _flat_states(flat: dict, trained: list[str], sizes: dict[str, torch.Size]) -> dict[str, dict] | None:
    """Views into vectors over all parameters, as states of each of them; None if the sizes do not add up."""
    if flat["exp_avg"].args[2] != (sum(sizes[name].numel() for name in trained),):
        return None
    states, offset = {}, 0
    for name in trained:
        states[name] = flat | {"view": (offset, sizes[name])}
        offset += sizes[name].numel()
    return states


def _moments(states: dict[str, dict | None], sizes: dict[str, torch.Size], storages: Storages) -> AdamMoments | str:
    found = {"exp_avg": {}, "exp_avg_sq": {}}
    if without := [name for name, state in states.items() if not state]:
        more = f" and {len(without) - 3} more" if len(without) > 3 else ""
        return f"its optimizer has no state for {', '.join(sorted(without)[:3])}{more}"
    steps = [state.get("step") for state in states.values()]
    if not all(type(step) is int and step >= 0 for step in steps):
        return "its optimizer's states do not say how many updates they are of"
    if len(set(steps)) != 1:
        return f"its optimizer's states are of different updates: {min(steps)} to {max(steps)}"
    for kind, tensors in found.items():
        storages.forget()
        for name, state in states.items():
            tensor = storages.tensor(state[kind])
            if "view" in state:
                offset, size = state["view"]
                tensor = tensor[offset : offset + size.numel()].view(size)
            if tensor.shape != sizes[name]:
                return f"its {kind} of {name} has shape {list(tensor.shape)}, not {list(sizes[name])}"
            if not torch.isfinite(tensor).all():
                return f"its {kind} of {name} holds values that are not finite numbers"
            tensors[name] = tensor.float()
    return AdamMoments(steps[0], **found)


def is_fairseq(path: epath.PathLike) -> bool:
    """Whether a file of torch.save is a fairseq checkpoint. Raises InputError for what is no such file."""
    with opened(path, ALLOWED, "checkpoint of AV-HuBERT") as (content, _):
        return isinstance(content, dict) and isinstance(content.get("model"), dict)


@contextlib.contextmanager
def _opened(path: epath.PathLike) -> Iterator[tuple[dict, Storages]]:
    """Yields the unpickled content and its storages; InputError for what is no fairseq checkpoint."""
    with opened(path, ALLOWED, "fairseq checkpoint") as (content, storages):
        if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
            raise InputError(f"{path}: not a fairseq checkpoint, expected a dict with the entry 'model'")
        if not all(isinstance(name, str) for name in content["model"]):
            raise InputError(f"{path}: not a fairseq checkpoint, expected tensor names as strings")
        yield content, storages


def _num_updates(content: dict) -> int | None:
    history = content.get("optimizer_history")
    last = history[-1] if isinstance(history, list) and history else None
    number = last.get("num_updates") if isinstance(last, dict) else None
    return number if type(number) is int and number >= 0 else None


def _settings(content: dict, path: str) -> dict[str, Any]:
    plain = _Plain()
    if content.get("cfg") is not None:
        cfg = plain(content["cfg"])
    else:
        args = plain(content.get("args"))
        cfg = {"model": args, "task": args}
    if not isinstance(cfg, dict) or not isinstance(cfg.get("model"), dict):
        raise InputError(f"{path}: not a fairseq checkpoint, expected model settings in its 'cfg' or 'args'")
    return cfg


class _Plain:
    """Settings without stand-ins: omegaconf nodes and a Namespace by content, enum members by value.

    Raises ValueError for more of them than a checkpoint has: lists of references to lists of references, and so on,
    are small in the file, and without end to whoever shows or copies them.
    """

    def __init__(self):
        self._left = _MOST_SETTINGS

    def __call__(self, value: Any) -> Any:
        self._left -= 1 + (len(value) if isinstance(value, str | bytes | bytearray) else 0)
        if self._left < 0:
            raise ValueError(f"settings of more than {_MOST_SETTINGS} values and letters")
        return self._converted(value)

    def _converted(self, value: Any) -> Any:
        if isinstance(value, StandIn):
            state = value.state if isinstance(value.state, dict) else {}
            if value.symbol == NAMESPACE:
                return self(state)
            for content in ("_content", "_val"):
                if content in state:
                    return self(state[content])
            return self(value.args[0]) if len(value.args) == 1 else value.symbol
        if isinstance(value, type):
            return value.symbol if issubclass(value, StandIn) else value.__name__
        if isinstance(value, dict):
            return {key: self(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self(item) for item in value]
        return value
