"""Pickles that would do harm if they were trusted, and checkpoints around them; shared by the tests of the readers."""

import datetime
import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import joblib
import torch


def saved(folder, **content):
    path = folder / "hostile.pt"
    torch.save({"model": {}, "cfg": {"model": {}}} | content, path)
    return path


def rewritten(folder, data_pkl, compression=zipfile.ZIP_STORED):
    """The archive of a harmless checkpoint with another pickle in it."""
    path = saved(folder, model={"weight": torch.arange(4.0)})
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, data_pkl if data_pkl is not None and name.endswith("data.pkl") else content)
    return path


class Call:
    """Pickles as a call."""

    def __init__(self, function, *args, state=None):
        self.call = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.call


HARMFUL = {
    "posix.system": lambda marker: Call(os.system, f"touch {marker}"),
    "builtins.eval": lambda marker: Call(eval, f"open({str(marker)!r}, 'w')"),
    "builtins.exec": lambda marker: Call(exec, f"open({str(marker)!r}, 'w')"),
    "subprocess.Popen": lambda marker: Call(subprocess.Popen, ["touch", str(marker)]),
    "builtins.getattr": lambda marker: Call(getattr, "", "upper"),
    "shutil.rmtree": lambda marker: Call(shutil.rmtree, str(marker.parent)),
    "torch.serialization.load": lambda marker: Call(torch.load, str(marker)),
    "pathlib.PosixPath": lambda marker: Path(marker),
    "joblib.numpy_pickle.load": lambda marker: Call(joblib.load, str(marker)),
    "datetime.date": lambda marker: datetime.date(2020, 1, 1),
}
