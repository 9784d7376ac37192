"""Records of features, drawn at random."""

import numpy as np

from viavsp_jax.data.examples import Example

WIDTH = 8


def example(number: int, rng: np.random.Generator, num_frames: int = 5) -> Example:
    features = rng.normal(size=(num_frames, WIDTH)).astype(np.float16)
    features[-1] = 0  # trailing zero bytes must survive
    return {
        "id": f"clip-{number}",
        "features": features,
        "cluster_counts": np.array([2, num_frames - 2], np.int32),
        "transcript": f"xin chào số {number}",
        "source_language": "vi",
        "target_language": "en",
    }


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, np.ndarray):
            assert found[name].dtype == value.dtype, name
            np.testing.assert_array_equal(found[name], value, err_msg=name)
        else:
            assert found[name] == value, name
