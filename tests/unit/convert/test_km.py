"""Reading scikit-learn's K-Means: recorded and fresh models in full, hostile and damaged ones with one error."""

import bz2
import gzip
import io
import lzma
import os
import pickle
import zlib

import joblib
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import sklearn
from hostile_pickles import HARMFUL, Call
from places import GOLDEN
from sklearn.cluster import BisectingKMeans, KMeans, MiniBatchKMeans
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from convert import from_km
from viavsp_jax.prepare import kmeans
from viavsp_jax.runtime.errors import InputError

RECORDED = GOLDEN / "kmeans"
TINY = RECORDED / "tiny.km"


def numbers(name):
    return [[int(number) for number in line.split()] for line in (RECORDED / name).read_text().splitlines() if line]


def test_recorded_model_gives_the_recorded_labels_and_counts(tmp_path, capsys):
    from_km.main([str(TINY), "--output", str(tmp_path / "centers.safetensors"), "--layer", "2"])
    recorded = np.load(RECORDED / "tiny_features.npz")
    centers, layer = kmeans.load_centers(tmp_path / "centers.safetensors")
    assert layer == 2 and f"{len(centers)} centres" in capsys.readouterr().out
    np.testing.assert_array_equal(centers, recorded["cluster_centers"])
    labels = kmeans.assign(recorded["features"], centers)
    parts = np.split(labels, np.cumsum(recorded["lengths"])[:-1])
    assert [part.tolist() for part in parts] == numbers("tiny_test_0_1.km")
    assert [kmeans.run_lengths(part).tolist() for part in parts] == numbers("tiny_test.cluster_counts")


def fitted(estimator=MiniBatchKMeans, dtype=np.float32, order="C", random_state=0):
    features = np.random.default_rng(0).normal(size=(200, 6)).astype(dtype)
    model = estimator(5, n_init=2, random_state=random_state).fit(features)
    model.cluster_centers_ = np.asarray(model.cluster_centers_, order=order)
    return model


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("dump", [joblib.dump, lambda model, path, protocol: path.write_bytes(
    pickle.dumps(model, protocol))], ids=["joblib", "pickle"])  # fmt: skip
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"estimator": KMeans, "dtype": np.float64},
        {"order": "F"},
        {"random_state": np.random.RandomState(1)},
        {"random_state": None},
    ],
)
def test_equals_the_estimators_own_centres(tmp_path, protocol, dump, settings):
    model, path = fitted(**settings), tmp_path / "model.km"
    dump(model, path, protocol=protocol)
    centers = from_km.read_centers(path)
    assert centers.dtype == np.float32
    np.testing.assert_array_equal(centers, model.cluster_centers_.astype(np.float32))


def test_arrays_of_older_versions_and_other_machines(tmp_path, monkeypatch):
    model, path = fitted(), tmp_path / "model.km"
    model.cluster_centers_ = model.cluster_centers_.astype(">f4")
    path.write_bytes(pickle.dumps(model, 2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))  # NumPy 1
    np.testing.assert_array_equal(from_km.read_centers(path), model.cluster_centers_)
    # joblib before 1.2 did not align.
    monkeypatch.setattr(joblib.numpy_pickle.NumpyArrayWrapper.__init__, "__defaults__", (False, None))
    joblib.dump(model, path)
    np.testing.assert_array_equal(from_km.read_centers(path), model.cluster_centers_)


FEATURES = np.random.default_rng(0).normal(size=(200, 6)).astype(np.float32)
NAMED = pd.DataFrame(FEATURES, columns=[f"f{number}" for number in range(6)])
GENERATORS = (np.random.MT19937, np.random.PCG64, np.random.PCG64DXSM, np.random.Philox, np.random.SFC64)
FITTED = {
    "partial_fit": lambda: MiniBatchKMeans(5).partial_fit(FEATURES[:99]).partial_fit(FEATURES[99:]),
    "a table of pandas": lambda: KMeans(5).fit(NAMED),
    "partial_fit on a table, a seed": lambda: MiniBatchKMeans(5, random_state=1).partial_fit(NAMED),
    "centres to begin with": lambda: KMeans(5, init=FEATURES[:5], n_init=1).fit(FEATURES),
    "weights, no numbers of NumPy": lambda: KMeans(5).fit(FEATURES.tolist(), sample_weight=np.arange(200)),
    "Elkan's algorithm": lambda: KMeans(5, algorithm="elkan", verbose=0, copy_x=False).fit(FEATURES),
    "a sparse matrix": lambda: MiniBatchKMeans(5).fit(scipy.sparse.csr_matrix(FEATURES)),
    "one cluster, whose number is NumPy's": lambda: KMeans(np.int64(1)).fit(FEATURES),
    "other output": lambda: KMeans(5).set_output(transform="pandas").fit(NAMED),
    "a request for weights": lambda: requesting(KMeans(5)).fit(FEATURES),
} | {
    f"a random state of {kind.__name__}": lambda kind=kind: KMeans(
        5, random_state=np.random.RandomState(kind(3))).fit(FEATURES)
    for kind in GENERATORS
}  # fmt: skip


def requesting(model):
    with sklearn.config_context(enable_metadata_routing=True):
        return model.set_fit_request(sample_weight=True)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("make", FITTED.values(), ids=FITTED)
def test_however_it_was_fitted(tmp_path, make, protocol):
    model, path = make(), tmp_path / "model.km"
    for dump in (joblib.dump, lambda model, path, protocol: path.write_bytes(pickle.dumps(model, protocol))):
        dump(model, path, protocol=protocol)
        np.testing.assert_array_equal(from_km.read_centers(path), model.cluster_centers_.astype(np.float32))


@pytest.mark.parametrize("method", ["zlib", "gzip", "bz2", "lzma", "xz"])
def test_joblib_s_compression(tmp_path, method):
    path, model = tmp_path / "model.km", FITTED["a table of pandas"]()
    joblib.dump(model, path, compress=(method, 3))
    np.testing.assert_array_equal(from_km.read_centers(path), model.cluster_centers_.astype(np.float32))
    whole = path.read_bytes()
    for end in range(6, len(whole), 97):
        path.write_bytes(whole[:end])
        with pytest.raises(InputError, match="model.km: not a readable K-Means model"):
            from_km.read_centers(path)


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lambda data: lzma.compress(data, preset=0)])
def test_what_unpacks_to_more_than_the_memory_is_refused(tmp_path, monkeypatch, compress):
    monkeypatch.setattr(from_km, "_MOST_MEMORY", 2**20)
    (tmp_path / "model.km").write_bytes(compress(bytes(2**23)))
    with pytest.raises(InputError, match="model.km: .*unpacks to more than 1048576 bytes"):
        from_km.read_centers(tmp_path / "model.km")


class Python2Pickler(pickle._Pickler):
    """Writes bytes and texts as Python 2's strings."""

    dispatch = pickle._Pickler.dispatch.copy()

    def save_string(self, text):
        text = text.encode() if isinstance(text, str) else text
        self.write(pickle.BINSTRING + len(text).to_bytes(4, "little") + text)

    dispatch[bytes] = dispatch[str] = save_string


@pytest.mark.parametrize("protocol", [1, 2])
def test_models_of_old(tmp_path, protocol):
    """As scikit-learn before 0.22 and NumPy 1 name things, and as Python 2 wrote them, with scikit-learn's joblib."""
    path, model = tmp_path / "model.km", fitted(random_state=np.random.RandomState(1))

    def old(content):
        content = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
        content = content.replace(b"numpy.random._pickle\n__randomstate_ctor", b"numpy.random\n__RandomState_ctor")
        return content.replace(b"sklearn.cluster._kmeans\n", b"sklearn.cluster.k_means_\n")

    path.write_bytes(old(pickle.dumps(model, protocol)))
    np.testing.assert_array_equal(from_km.read_centers(path), model.cluster_centers_)
    buffer = io.BytesIO()
    Python2Pickler(buffer, protocol).dump(model)
    assert b"_codecs" not in buffer.getvalue()
    path.write_bytes(old(buffer.getvalue()))
    np.testing.assert_array_equal(from_km.read_centers(path), model.cluster_centers_)
    joblib.dump(model, path, protocol=protocol)
    content = path.read_bytes().replace(b"joblib.numpy_pickle\n", b"sklearn.externals.joblib.numpy_pickle\n")
    assert b"sklearn.externals" in content
    path.write_bytes(old(content))
    np.testing.assert_array_equal(from_km.read_centers(path), model.cluster_centers_)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: BisectingKMeans(5).fit(FEATURES), "sklearn.cluster._bisect_k_means.BisectingKMeans"),
        (lambda: make_pipeline(StandardScaler(), KMeans(5)).fit(FEATURES), "sklearn.pipeline.Pipeline"),
        (lambda: {"model": KMeans(5).fit(FEATURES)}, "something else"),
    ],
)
def test_other_models_are_refused(tmp_path, make, name):
    """Their labels are not those of the nearest centre."""
    joblib.dump(make(), tmp_path / "model.km")
    with pytest.raises(InputError, match=f"model.km: holds {name}, expected KMeans or MiniBatchKMeans"):
        from_km.read_centers(tmp_path / "model.km")


@pytest.mark.parametrize("place", ["whole", "attribute", "object array", "args of a stand-in", "hidden in a state"])
@pytest.mark.parametrize("dump", [joblib.dump, lambda model, path: path.write_bytes(pickle.dumps(model))])
@pytest.mark.parametrize("symbol", HARMFUL)
def test_any_other_name_is_refused(tmp_path, symbol, dump, place):
    marker, path = tmp_path / "marker", tmp_path / "hostile.km"
    harmful, model = HARMFUL[symbol](marker), fitted()
    if place == "whole":
        model = harmful
    elif place == "object array":
        model.cluster_centers_ = np.array([[harmful]], object)
    else:
        model.verbose = {
            "attribute": harmful,
            "args of a stand-in": Call(list, (harmful,)),
            "hidden in a state": Call(bytearray, state={"a": [harmful]}),
        }[place]
    dump(model, path)
    with pytest.raises(InputError) as caught:
        from_km.read_centers(path)
    message = str(caught.value)
    # joblib writes objects of an array as a pickle of their own, which is not even opened.
    own = dump is joblib.dump and place == "object array"
    refused = "an array is of type 'O8', expected numbers" if own else f"names {symbol}, which is not on the allow-list"
    assert str(path) in message and refused in message
    assert path.exists() and not marker.exists()


def test_allowed_names_with_hostile_arguments_do_nothing(tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "model.km"
    model = fitted()
    model.verbose = Call(np.dtype, f"__import__('os').system('touch {marker}')".replace("(", "").replace(")", ""))
    model.init = Call(bytearray, 1 << 60)
    model.n_steps_ = Call(np.ndarray, (1 << 60,))
    path.write_bytes(pickle.dumps(model))
    np.testing.assert_array_equal(from_km.read_centers(path), model.cluster_centers_)
    assert not marker.exists()


def record(state):
    """A pickle of a fitted estimator with these attributes."""
    model = MiniBatchKMeans()
    model.__dict__ = state
    return pickle.dumps(model)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "no cluster_centers_, expected one that was fitted"),
        ({"cluster_centers_": 3}, "is no array"),
        ({"cluster_centers_": np.zeros(4, np.float32)}, r"are float32\[4\], expected floats \[K, D\]"),
        ({"cluster_centers_": np.zeros((0, 4), np.float32)}, r"are float32\[0, 4\]"),
        ({"cluster_centers_": np.zeros((2, 4), np.int32)}, r"are int32\[2, 4\]"),
        ({"cluster_centers_": np.array([["a"]])}, "an array is of type 'U1', expected numbers"),
        ({"cluster_centers_": np.array([[None]])}, "an array is of type 'O8', expected numbers"),
        ({"cluster_centers_": np.full((2, 4), np.nan, np.float32)}, "not finite"),
        ({"cluster_centers_": np.full((2, 4), 1e300)}, "not finite numbers in float32"),
        ({"cluster_centers_": np.zeros((2, 4)), "n_clusters": 3}, r"n_clusters is 3, but .* are \[2, 4\]"),
        ({"cluster_centers_": np.zeros((2, 4)), "n_features_in_": 5}, r"n_features_in_ is 5, but .* are \[2, 4\]"),
    ],
)
def test_other_content_is_refused(tmp_path, state, message):
    path = tmp_path / "model.km"
    path.write_bytes(record(state))
    with pytest.raises(InputError, match=f"model.km: .*{message}"):
        from_km.read_centers(path)


@pytest.mark.parametrize("shape", [(1 << 40, 6), (1 << 63, 1 << 63), (-5, -6), (5, "6"), [5, 6], (4, 6), (5, 7)])
@pytest.mark.parametrize("form", ["joblib", "pickle", "buffer"])
def test_declared_shape_must_fit_the_bytes(tmp_path, shape, form):
    path, data = tmp_path / "model.km", np.zeros((5, 6), np.float32)
    if form == "joblib":
        wrapper = joblib.numpy_pickle.NumpyArrayWrapper(np.ndarray, shape, "C", data.dtype)
        # The data follows the record.
        content = record({"cluster_centers_": wrapper})
        end = content.index(b"ub", content.index(b"alignment_bytes")) + 2
        content = content[:end] + b"\x00" + data.tobytes() + content[end:]
    elif form == "pickle":
        function, args, (version, _, dtype, fortran, raw) = data.__reduce__()
        content = record({"cluster_centers_": Call(function, *args, state=(version, shape, dtype, fortran, raw))})
    else:
        content = record(
            {"cluster_centers_": Call(np._core.numeric._frombuffer, data.tobytes(), data.dtype, shape, "C")}
        )
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"model.km: not a readable K-Means model"):
        from_km.read_centers(path)


def test_huge_numbers_in_a_few_bytes_take_no_memory(tmp_path):
    path = tmp_path / "model.km"
    for content in (b"\x80\x02}r\xff\xff\xff\x7f.", b"\x80\x05\x96" + b"\xff" * 7 + b"\x0f."):
        path.write_bytes(content)
        with pytest.raises(InputError, match="model.km: "):
            from_km.read_centers(path)


def test_files_that_are_no_model(tmp_path):
    path = tmp_path / "model.km"
    with pytest.raises(InputError, match="model.km: no such file"):
        from_km.read_centers(path)
    path.write_bytes(b"\x04\x22\x4d\x18")
    with pytest.raises(InputError, match="model.km: compressed by LZ4"):
        from_km.read_centers(path)
    for content in (b"", b"text", pickle.dumps({"cluster_centers_": 1}), zlib.compress(b"")):
        path.write_bytes(content)
        with pytest.raises(InputError, match="model.km: "):
            from_km.read_centers(path)


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
@pytest.mark.parametrize("form", ["recorded", "pickle"])
def test_damage_gives_one_clear_error(tmp_path, form):
    """Cut anywhere before the end of the pickle, or with one bit flipped."""
    whole = TINY.read_bytes() if form == "recorded" else pickle.dumps(fitted())
    path, rng = tmp_path / "damaged.km", np.random.default_rng(0)
    for end in range(0, len(whole), 7):
        path.write_bytes(whole[:end])
        with pytest.raises(InputError, match="damaged.km: "):
            from_km.read_centers(path)
    for _ in range(500):
        flipped = bytearray(whole)
        flipped[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        path.write_bytes(flipped)
        try:
            assert np.isfinite(from_km.read_centers(path)).all()
        except InputError as error:
            assert "damaged.km: " in str(error) and "\n" not in str(error)


def test_command_reports_errors(tmp_path, capsys):
    path = tmp_path / "model.km"
    joblib.dump(Call(os.system, "true"), path)
    for arguments, message in (
        ([str(path)], "names posix.system, which is not on the allow-list"),
        ([str(TINY), "--layer", "-1"], "--layer is -1"),
    ):
        with pytest.raises(SystemExit) as caught:
            from_km.main([*arguments, "--output", str(tmp_path / "out")])
        assert caught.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
