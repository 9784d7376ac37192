"""Reading fairseq checkpoints: the recorded ones in full, hostile and damaged ones with one clear error."""

import argparse
import json
import lzma
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict, defaultdict

import numpy as np
import pytest
import torch
from hostile_pickles import rewritten, saved
from places import GOLDEN, ROOT

from convert import from_avhubert, from_fairseq
from convert.checkpoints import read_fairseq
from viavsp_jax.prepare.features.avhubert_torch import UNUSED_KEYS, load_encoder
from viavsp_jax.runtime.errors import InputError

AVHUBERT = GOLDEN / "avhubert"
LEGACY = AVHUBERT / "legacy_args_container.pt"


@pytest.fixture(scope="module", params=["large_tiny", "postln_add_tiny"])
def checkpoint(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoints") / f"{request.param}.pt"
    path.write_bytes(lzma.decompress((AVHUBERT / f"{request.param}.pt.xz").read_bytes()))
    return path


def recorded(checkpoint, kind):
    return json.loads((AVHUBERT / f"{checkpoint.stem}.{kind}.json").read_text())


def test_model_and_settings_equal_the_recorded_ones(checkpoint):
    read = read_fairseq(checkpoint)
    ours = {name: [list(t.shape), str(t.dtype).removeprefix("torch.")] for name, t in read.model.items()}
    assert ours == recorded(checkpoint, "keys")["model"]
    assert read.cfg == recorded(checkpoint, "cfg")
    assert "fairseq" not in sys.modules and "omegaconf" not in sys.modules


def test_tensors_equal_those_of_torch_load(checkpoint):
    real = [dict, list, int, defaultdict]
    named = set(torch.serialization.get_unsafe_globals_in_checkpoint(checkpoint))
    foreign = named - {f"{cls.__module__}.{cls.__name__}" for cls in real}
    stand_ins = [(type("Foreign", (), {}), name) for name in foreign]
    with torch.serialization.safe_globals(real + stand_ins):
        expected = torch.load(checkpoint, weights_only=True)["model"]
    read = read_fairseq(checkpoint).model
    assert read.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(read[name], tensor), name


def test_old_args_container():
    read = read_fairseq(LEGACY)
    with torch.serialization.safe_globals([argparse.Namespace]):
        expected = torch.load(LEGACY, weights_only=True)
    assert read.cfg["model"] == read.cfg["task"] == vars(expected["args"])
    assert read.model.keys() == expected["model"].keys()
    for name, tensor in expected["model"].items():
        assert torch.equal(read.model[name], tensor), name


def test_views_strides_and_dtypes(tmp_path):
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    model = {"transposed": base.T, "slice": base[1:3, 2:5], "scalar": torch.tensor(7)}
    for dtype in (
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
    ):
        model[str(dtype)] = torch.tensor([0, 1, 100]).to(dtype)
    model["bool"] = torch.tensor([True, False])
    read = read_fairseq(saved(tmp_path, model=OrderedDict(model))).model
    for name, tensor in model.items():
        assert torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype, name


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weight_that_is_not_finite_is_named(tmp_path, value):
    model = {"good": torch.zeros(3), "a.bad.weight": torch.tensor([0, value]), "count": torch.tensor(1)}
    with pytest.raises(InputError, match="hostile.pt: a.bad.weight holds values that are not finite"):
        read_fairseq(saved(tmp_path, model=model))


def cyclic():
    value = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": None}, "expected a dict with the entry 'model'"),
        (
            {"model": {"weight": 3.0}},
            "not a readable fairseq checkpoint .it holds something that is not",
        ),
        ({"model": {1: torch.zeros(1)}}, "expected tensor names as strings"),
        ({"cfg": None}, "expected model settings in its 'cfg' or 'args'"),
        ({"cfg": {"model": 1}}, "expected model settings"),
        ({"cfg": {"model": {"a": cyclic()}}}, "not a readable fairseq checkpoint"),
    ],
)
def test_other_content_is_refused(tmp_path, content, message):
    with pytest.raises(InputError, match=f"hostile.pt: .*{message}"):
        read_fairseq(saved(tmp_path, **content))


def test_files_that_are_no_checkpoint(tmp_path):
    path = tmp_path / "file.pt"
    with pytest.raises(InputError, match="file.pt: no such file"):
        read_fairseq(path)
    torch.save({"model": {}}, path, _use_new_zipfile_serialization=False)
    for content in (b"", b"text", path.read_bytes(), pickle.dumps({"model": {}})):
        path.write_bytes(content)
        with pytest.raises(InputError, match="file.pt: not a PyTorch zip archive"):
            read_fairseq(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "nothing here")
    with pytest.raises(InputError, match="file.pt: not a PyTorch checkpoint, expected one data.pkl"):
        read_fairseq(path)
    with pytest.raises(InputError, match="a compressed zip archive"):
        read_fairseq(rewritten(tmp_path, None, zipfile.ZIP_DEFLATED))


def test_truncated_at_any_point(tmp_path):
    whole = LEGACY.read_bytes()
    path = tmp_path / "damaged.pt"
    for end in np.linspace(0, len(whole) - 1, 25, dtype=int):
        path.write_bytes(whole[:end])
        with pytest.raises(InputError, match="damaged.pt: "):
            read_fairseq(path)


def test_one_flipped_byte_of_the_directory(tmp_path):
    whole = bytearray(LEGACY.read_bytes())
    start = whole.index(b"PK\x01\x02")
    path = tmp_path / "damaged.pt"
    for place in range(start, min(start + 400, len(whole))):
        damaged = whole.copy()
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        try:
            read_fairseq(path)
        except InputError as error:
            assert str(path) in str(error) and "\n" not in str(error)


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_one_flipped_bit_never_gives_another_error(tmp_path):
    """In the archive as it lies, and in the pickle with the archive's checksum made right again."""
    path = tmp_path / "damaged.pt"
    with zipfile.ZipFile(LEGACY) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    data_pkl = next(name for name in entries if name.endswith("data.pkl"))
    rng = np.random.default_rng(0)

    def flipped(data):
        data = bytearray(data)
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        return bytes(data)

    refused = 0
    for i in range(400):
        if i % 2:
            path.write_bytes(flipped(LEGACY.read_bytes()))
        else:
            with zipfile.ZipFile(path, "w") as archive:
                for name, data in entries.items():
                    archive.writestr(name, flipped(data) if name == data_pkl else data)
        try:
            read_fairseq(path)
        except InputError as error:
            refused += str(path) in str(error)
    assert 200 < refused < 400


def test_converted_folder_holds_the_checkpoints_weights(checkpoint, tmp_path, capsys):
    from_fairseq.main([str(checkpoint), "--output", str(tmp_path / "encoder"), "--dtype", "float16"])
    assert str(tmp_path / "encoder") in capsys.readouterr().out
    model = load_encoder(tmp_path / "encoder", torch.float32)
    read = read_fairseq(checkpoint)
    names = {name for name in read.model if name not in UNUSED_KEYS}
    assert model.state_dict().keys() == names
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, read.model[name].to(tensor.dtype)), name  # the recorded weights are float16 exact
    settings = recorded(checkpoint, "cfg")["model"]
    for field, name in from_fairseq.CONFIG_NAMES.items():
        assert getattr(model.config, field) == settings[name]
    assert list(model.config.resnet_channels) == [
        recorded(checkpoint, "keys")["model"][f"feature_extractor_video.resnet.trunk.layer{i}.1.bn2.weight"][0][0]
        for i in (1, 2, 3, 4)
    ]


def test_the_command_for_every_form_takes_it(checkpoint, tmp_path, capsys):
    """Also where a Hugging Face config lies beside it."""
    from_fairseq.convert(checkpoint, tmp_path / "one", layers=2)
    (tmp_path / checkpoint.name).symlink_to(checkpoint)
    (tmp_path / "config.json").write_text("{}")
    for waveform, more in (("int16", []), ("float", ["--waveform", "float"])):
        from_avhubert.main([str(tmp_path / checkpoint.name), "--output", str(tmp_path / "two"), "--layers", "2", *more])
        assert f"audio features of {waveform} samples" in capsys.readouterr().out
        assert load_encoder(tmp_path / "two").config.waveform == waveform
        written = [(tmp_path / folder / "model.safetensors").read_bytes() for folder in ("one", "two")]
        assert written[0] == written[1]


def test_conversion_of_an_incomplete_checkpoint(tmp_path):
    with pytest.raises(InputError, match="legacy_args_container.pt: .*missing"):
        from_fairseq.convert(LEGACY, tmp_path)
    with pytest.raises(InputError, match=r"hostile.pt: not a pre-trained AV-HuBERT, its settings lack \['audio_feat"):
        from_fairseq.convert(saved(tmp_path), tmp_path)
    settings = read_fairseq(LEGACY).cfg["model"]
    with pytest.raises(InputError, match="hostile.pt: activation_fn is 'relu', only 'gelu' is supported"):
        from_fairseq.convert(saved(tmp_path, cfg={"model": settings | {"activation_fn": "relu"}}), tmp_path)
    with pytest.raises(InputError, match="hostile.pt: normalize is False, only True is supported"):
        from_fairseq.convert(saved(tmp_path, cfg={"model": settings, "task": {"normalize": False}}), tmp_path)


def test_command_reports_an_error_without_traceback(tmp_path):
    command = [
        sys.executable,
        "-m",
        "convert.from_fairseq",
        str(tmp_path / "none.pt"),
        "--output",
        str(tmp_path),
    ]
    root = ROOT
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path / 'none.pt'}: no such file, expected a fairseq checkpoint\n"
