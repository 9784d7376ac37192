"""Checkpoints made by strangers with bad intent: refused by name, nothing is run, no memory is taken."""

import argparse
import contextlib
import copy
import copyreg
import io
import pickle
import tracemalloc
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hostile_pickles import HARMFUL, Call, rewritten, saved

from convert.checkpoints import read_fairseq
from viavsp_jax.runtime.errors import InputError


@pytest.mark.parametrize("place", ["cfg", "model", "nested", "args of a stand-in", "state", "tensor", "unused entry"])
@pytest.mark.parametrize("symbol", HARMFUL)
def test_any_other_name_is_refused(tmp_path, symbol, place):
    marker = tmp_path / "marker"
    harmful = HARMFUL[symbol](marker)
    content = {
        "cfg": {"cfg": harmful},
        "model": {"model": {"weight": harmful}},
        "nested": {"cfg": {"model": OrderedDict(a=[(harmful,)])}},
        "args of a stand-in": {"cfg": {"model": argparse.Namespace(a=Call(list, (harmful,)))}},
        "state": {"cfg": {"model": Call(bytearray, state={"a": harmful})}},
        "tensor": {"model": {"weight": Call(torch._utils._rebuild_tensor_v2, harmful)}},
        "unused entry": {"last_optimizer_state": harmful},
    }[place]
    path = saved(tmp_path, **content)
    with pytest.raises(InputError) as caught:
        read_fairseq(path)
    assert str(path) in str(caught.value) and f"names {symbol}, which is not on the allow-list" in str(caught.value)
    assert path.exists() and not marker.exists()


@pytest.mark.parametrize(
    "data_pkl",
    [
        b"cos\nsystem\n(X\x04\0\0\0trueltR.",
        b"\x80\x04\x8c\x08builtins\x8c\x09eval.call\x93.",  # dotted name
        b"\x80\x04\x8c\x0bcollections\x8c\x13OrderedDict.__new__\x93.",  # an attribute of an allowed class
        b"(X\x01\0\0\0xios\nsystem\n.",
        b"\x80\x02U\x04evil(cbuiltins\nexec\no.",
        b"\x80\x04\x8c\x0bcollections\x8c\x20OrderedDict.__init__.__globals__\x93.",
        b"\x80\x04\x8c\x16numpy.core.multiarray.\x8c\x10scalar.__class__\x93.",
        b"cnumpy.core.multiarray\n_reconstruct.__globals__\n.",
        b"\x80\x04cshutil\nrmtree\n)}\x92.",  # NEWOBJ_EX
    ],
)
def test_raw_pickles_that_name_something_else_are_refused(tmp_path, data_pkl):
    with pytest.raises(InputError, match="allow-list"):
        read_fairseq(rewritten(tmp_path, data_pkl))


@pytest.mark.parametrize("name", [b"argparse\nNamespace", b"collections\nOrderedDict", b"fairseq.data\nDictionary"])
def test_a_pickle_cannot_alter_a_class(tmp_path, name):
    # BUILD on the class itself, with a state that sets attributes.
    data_pkl = b"\x80\x02c" + name + b"\nN}X\x04\0\0\0evilK\x01s\x86b."
    with pytest.raises(InputError, match="not a readable fairseq checkpoint"):
        read_fairseq(rewritten(tmp_path, data_pkl))
    assert not hasattr(argparse.Namespace, "evil") and not hasattr(OrderedDict, "evil")


@pytest.mark.parametrize(
    "data_pkl",
    [
        b"\x80\x02}r\xff\xff\xff\x3f.",  # a memo index
        b"\x80\x05\x96\0\0\0\x40\0\0\0\0.",  # a length of bytes
        b"\x80\x04\x95\0\0\0\x40\0\0\0\0}.",  # a length of a frame
    ],
)
def test_huge_numbers_in_a_few_bytes_take_no_memory(tmp_path, data_pkl):
    path = rewritten(tmp_path, data_pkl)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="hostile.pt: "):
            read_fairseq(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def doubled(kind):
    """A list or tuple of references to such of references: 2^60 items to whoever copies, shows or hashes them."""
    nested = kind(["x"])
    for _ in range(60):
        nested = kind([nested, nested])
    return nested


@pytest.mark.parametrize("content", [
    {"cfg": {"model": {"encoder_layers": doubled(list)}}}, {"cfg": {"model": {"activation_fn": doubled(tuple)}}},
    {"args": argparse.Namespace(a=doubled(list)), "cfg": None},
])  # fmt: skip
def test_settings_without_end_are_refused(tmp_path, content):
    with pytest.raises(InputError, match="settings of more than|a tuple of more than"):
        read_fairseq(saved(tmp_path, **content))


NEST = b"X\x01\0\0\0x\x85" + 60 * b"2\x86"  # the same, by opcodes: Python would have to hash it to pickle it


@pytest.mark.parametrize(
    "data_pkl",
    [
        b"\x80\x02}" + NEST + b"Ns.",
        b"\x80\x04\x8f(" + NEST + b"\x90.",
        b"\x80\x04(" + NEST + b"\x91.",
        b"\x80\x02ccollections\nOrderedDict\n(((" + NEST + b"NttR.",
    ],
)
def test_keys_without_end_are_refused(tmp_path, data_pkl):
    with pytest.raises(InputError, match="a tuple of more than"):
        read_fairseq(rewritten(tmp_path, data_pkl))


def test_many_names_of_one_tensor_are_refused(tmp_path):
    shared = torch.zeros(100_000)
    path = saved(tmp_path, model={str(number): shared for number in range(1000)})
    with pytest.raises(InputError, match=r"hostile.pt: a file of \d+ bytes whose tensors have 400000000"):
        read_fairseq(path)
    assert read_fairseq(saved(tmp_path, model={"tied": shared, "to": shared})).model["tied"].numel() == 100_000


def test_entries_that_share_their_bytes_are_refused(tmp_path):
    """A directory that names one entry many times unpacks to more than the file holds."""
    path = saved(tmp_path, model={"weight": torch.arange(4000.0)})
    with zipfile.ZipFile(path, "a") as archive:
        (entry,) = (entry for entry in archive.infolist() if entry.filename.endswith("data/0"))
        for number in range(1, 50):
            again = copy.copy(entry)
            again.filename = entry.filename.replace("data/0", f"data/{number}")
            archive.filelist.append(again)
            archive.NameToInfo[again.filename] = again
            archive._didModify = True
    with pytest.raises(InputError, match=r"hostile.pt: a file of \d+ bytes whose entries declare \d{6}"):
        read_fairseq(path)


def test_allowed_names_with_hostile_arguments_do_nothing(tmp_path):
    marker = tmp_path / "marker"
    calls = [Call(bytearray, 1 << 60), Call(list, Call(str, f"touch {marker}")), Call(np.dtype, "O,O" * 999)]
    read = read_fairseq(saved(tmp_path, cfg={"model": {"a": calls}}))
    assert read.cfg["model"]["a"] == [1 << 60, f"touch {marker}", "O,O" * 999] and not marker.exists()


def tensor_record(**changed):
    """A pickle of {"model": {"w": tensor}} whose recorded geometry is ours to choose."""
    geometry = {
        "kind": "storage",
        "entry": "0",
        "numel": 4,
        "offset": 0,
        "size": (4,),
        "stride": (1,),
    } | changed

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, item):
            if isinstance(item, Storage):
                return (geometry["kind"], torch.FloatStorage, geometry["entry"], "cpu", geometry["numel"])
            return None

    args = (Storage(), geometry["offset"], geometry["size"], geometry["stride"], False, OrderedDict())
    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump(
        {"model": {"w": Call(torch._utils._rebuild_tensor_v2, *args)}, "cfg": {"model": {}}}
    )
    return buffer.getvalue()


def test_honest_tensor_record_is_read(tmp_path):
    read = read_fairseq(rewritten(tmp_path, tensor_record(size=(2, 2), stride=(1, 2))))
    np.testing.assert_array_equal(read.model["w"], [[0, 2], [1, 3]])


@pytest.mark.parametrize(
    "changed",
    [
        {"size": (5,)},
        {"offset": 1},
        {"offset": -1},
        {"stride": (-1,)},
        {"size": (1 << 40,), "stride": (0,)},
        {"size": (-4,)},
        {"size": "four"},
        {"numel": 3},
        {"kind": "module"},
        {"entry": "../data.pkl"},
        {"entry": "9"},
    ],
)
def test_tensor_that_does_not_fit_its_storage_is_refused(tmp_path, changed):
    with pytest.raises(InputError, match="hostile.pt: not a readable fairseq checkpoint"):
        read_fairseq(rewritten(tmp_path, tensor_record(**changed)))


@pytest.mark.parametrize("opcode", [b"\x82\x07", b"\x83\x07\0", b"\x84\x07\0\0\0"])
def test_extension_codes_are_refused(tmp_path, monkeypatch, opcode):
    """Also one that an unpickler that trusted its file has looked up before."""
    monkeypatch.setitem(copyreg._extension_cache, 7, OrderedDict)
    assert pickle.loads(b"\x80\x02" + opcode + b".") is OrderedDict
    with pytest.raises(InputError, match="extension code 7, expected none"):
        read_fairseq(rewritten(tmp_path, b"\x80\x02" + opcode + b"."))


@pytest.mark.parametrize("data_pkl", [b"Pmodel\n.", b"\x80\x02}q\0Q.", b"\x80\x02]}b.", b"\x80\x02}N)\x81."])
def test_other_opcodes_that_call_do_nothing(tmp_path, data_pkl):
    with pytest.raises(InputError, match="hostile.pt: not a (readable )?fairseq checkpoint"):
        read_fairseq(rewritten(tmp_path, data_pkl))


@pytest.mark.parametrize("folder", ["../", "/", "../../outside/", "/etc/", "link/"])
def test_names_of_entries_lead_nowhere(tmp_path, folder):
    """Entries are read by name from the archive, never written or followed."""
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    path = saved(inner, model={"weight": torch.arange(4.0)})
    with zipfile.ZipFile(path) as archive:
        entries = [(entry.filename.partition("/")[2], archive.read(entry)) for entry in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        link = zipfile.ZipInfo(folder.rstrip("/") or "root")
        link.external_attr = 0o120777 << 16  # a symbolic link
        archive.writestr(link, "/etc/passwd")
        for name, content in entries:
            archive.writestr(folder + name, content)
    with contextlib.suppress(InputError):
        assert read_fairseq(path).model["weight"].tolist() == [0, 1, 2, 3]
    assert sorted(str(found.relative_to(tmp_path)) for found in tmp_path.rglob("*")) == ["a", "a/b", "a/b/hostile.pt"]
