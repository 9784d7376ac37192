"""The calls that no file of this project makes, as they could run what a file of a stranger says."""

import ast

import pytest
from places import ROOT

# What runs what a file says.
CALLS = {
    "eval", "exec", "os.system", "os.popen", "pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load",
    "yaml.load", "yaml.unsafe_load", "marshal.load", "marshal.loads", "dill.load", "cloudpickle.load", "shelve.open",
    "pd.read_pickle", "pandas.read_pickle", "torch.hub.load",
}  # fmt: skip
# Keywords that such calls must give, and the only value that may be given to any call.
REQUIRED = {"torch.load": "weights_only", "np.load": "allow_pickle", "numpy.load": "allow_pickle"}
SAFE = {"trust_remote_code": False, "allow_pickle": False, "weights_only": True, "shell": False}
MODULES = {name.rpartition(".")[0] for name in CALLS | REQUIRED.keys()}
USUAL = {"numpy as np", "pandas as pd"}
PARTS = ("viavsp_jax", "convert", "configs", "scripts", "benchmarks")


def dangers(source: str) -> list[str]:
    """The calls of a Python file that could run what another file says, and imports that would hide them."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found += sorted(names & (CALLS | REQUIRED.keys()))
        elif isinstance(node, ast.Import):
            renamed = {f"{alias.name} as {alias.asname}" for alias in node.names if alias.asname}
            found += sorted(name for name in renamed - USUAL if name.split(" ")[0] in MODULES)
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            keywords = {one.arg: getattr(one.value, "value", None) for one in node.keywords}
            found += [name] * (name in CALLS)
            if name in REQUIRED and REQUIRED[name] not in keywords:
                found.append(f"{name} without {REQUIRED[name]}")
            found += [f"{name} with {key}" for key, safe in SAFE.items() if keywords.get(key, safe) is not safe]
    return found


def test_nothing_of_ours_runs_what_a_file_says():
    files = [path for part in PARTS for path in (ROOT / part).rglob("*.py")]
    assert len(files) > 80
    assert {str(path.relative_to(ROOT)): found for path in files if (found := dangers(path.read_text()))} == {}


@pytest.mark.parametrize("source", [
    "eval(x)", "pickle.loads(x)", "torch.load(x)", "torch.load(x, weights_only=False)", "np.load(x)",
    "np.load(x, allow_pickle=True)", "AutoModel.from_pretrained(x, trust_remote_code=True)",
    "subprocess.run(x, shell=True)", "joblib.load(x)", "os.system(x)", "np.load(x, allow_pickle=y)",
    "from pickle import loads", "import joblib as j", "AutoModel.from_pretrained(x, trust_remote_code=y)",
])  # fmt: skip
def test_the_search_for_such_calls_finds_them(source):
    assert dangers(source)
    harmless = ["import numpy as np", "import pickle", "model.eval()", "torch.load(x, weights_only=True)"]
    assert not dangers("\n".join([*harmless, "np.load(x, allow_pickle=False)", "jax.eval_shape(f)"]))
