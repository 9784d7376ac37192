"""The calls that no file of this project makes, as they could run what a file of a stranger says."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]

# What runs what a file says.
CALLS = {
    "eval", "exec", "os.system", "os.popen", "pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load",
    "yaml.load", "yaml.unsafe_load", "marshal.load", "marshal.loads", "dill.load", "cloudpickle.load", "shelve.open",
    "pd.read_pickle", "pandas.read_pickle", "torch.hub.load",
}  # fmt: skip
# Keywords that such calls must, and must not have.
SAFE = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False), "numpy.load": ("allow_pickle", False)}
UNSAFE = {"trust_remote_code": True, "allow_pickle": True, "weights_only": False, "shell": True}


def dangers(source: str) -> list[str]:
    """The calls of a Python file that could run what another file says."""
    found = []
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func)
        keywords = {one.arg: getattr(one.value, "value", None) for one in call.keywords}
        if name in CALLS:
            found.append(name)
        if name in SAFE and keywords.get(SAFE[name][0]) is not SAFE[name][1]:
            found.append(f"{name} without {SAFE[name][0]}={SAFE[name][1]}")
        found += [f"{name}({key}={value})" for key, value in UNSAFE.items() if keywords.get(key) is value]
    return found


def test_nothing_of_ours_runs_what_a_file_says():
    files = [path for part in ("viavsp_jax", "convert", "configs", "scripts") for path in (ROOT / part).rglob("*.py")]
    assert len(files) > 80
    assert {str(path.relative_to(ROOT)): found for path in files if (found := dangers(path.read_text()))} == {}


@pytest.mark.parametrize("source", [
    "eval(x)", "pickle.loads(x)", "torch.load(x)", "torch.load(x, weights_only=False)", "np.load(x)",
    "np.load(x, allow_pickle=True)", "AutoModel.from_pretrained(x, trust_remote_code=True)",
    "subprocess.run(x, shell=True)", "joblib.load(x)", "os.system(x)",
])  # fmt: skip
def test_the_search_for_such_calls_finds_them(source):
    assert dangers(source)
    assert not dangers("model.eval()\ntorch.load(x, weights_only=True)\nnp.load(x, allow_pickle=False)")
