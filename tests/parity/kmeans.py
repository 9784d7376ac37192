"""K-Means: centres, labels and run lengths, of a small model and of the real one."""

from collections.abc import Iterator

import numpy as np
import torch

from convert.from_km import read_centers
from tests.parity import avhubert
from tests.parity.media import encoder_inputs, utterances
from tests.parity.rows import EXACT, WHOLE, Golden, Row, close, exact, worst
from viavsp_jax.prepare import kmeans

REAL, ATTRIBUTES = "kmeans/centers.npz", "kmeans/model_km_attributes.json"


def labelled(what: str, labels: list[np.ndarray], recorded: list[list[int]]) -> Row:
    """Labels or counts of several utterances against the lines of a file."""
    return worst(what, [
        exact("number of utterances", len(labels), len(recorded)),
        *(exact(f"line {i}", *pair) for i, pair in enumerate(zip(labels, recorded, strict=False), 1)),
    ])  # fmt: skip


def tiny_checks(golden: Golden) -> Iterator[Row]:
    """From the scikit-learn file and the clips to cluster counts."""
    recorded = golden.arrays("kmeans/tiny_features.npz")
    centers = read_centers(golden.path("kmeans/tiny.km"))
    yield exact("tiny.km → centres", centers, recorded["cluster_centers"])
    encoder, layer, features = avhubert.load(golden, "large"), int(recorded["layer"]), []
    with torch.inference_mode():
        for utterance in utterances(golden):
            audio, video = (torch.from_numpy(x)[None] for x in encoder_inputs(golden, utterance))
            output = encoder.encode(encoder.audio_features(audio), encoder.video_features(video), layer=layer)[0]
            features.append(output[0].numpy())
    yield exact("tiny lengths", [len(one) for one in features], recorded["lengths"])
    yield close(f"tiny features, layer {layer}", np.concatenate(features), recorded["features"], WHOLE)
    for what, source in (("recorded", recorded["features"]), ("our", np.concatenate(features))):
        labels = np.split(kmeans.assign(source, centers), np.cumsum(recorded["lengths"])[:-1])
        yield labelled(f"tiny labels of {what} features", labels, golden.numbers("kmeans/tiny_test_0_1.km"))
        counts = [kmeans.run_lengths(one) for one in labels]
        yield labelled(f"tiny counts of {what} features", counts, golden.numbers("kmeans/tiny_test.cluster_counts"))
    gap = margin(recorded["features"], centers)
    yield close("tiny margin of the labels", gap, recorded["min_margin_sq"], WHOLE, relative=True)


def real_checks(golden: Golden) -> Iterator[Row]:
    """The reference's own model, when it is there, on features of the parent project; its label and count files."""
    recorded = golden.arrays("kmeans/real_features.npz")
    count = sum(name.startswith("feat") for name in recorded)
    labels = [recorded[f"labels{i}"] for i in range(count)]
    shards = [line for name in golden.names("kmeans/test_*_*.km") for line in golden.numbers(name)]
    yield labelled("label files of the shards", labels, shards)
    yield labelled("label file, merged", labels, golden.numbers("kmeans/test.km"))
    counts = [kmeans.run_lengths(one) for one in labels]
    yield labelled("run lengths", counts, golden.numbers("kmeans/test.cluster_counts"))
    features = [recorded[f"feat{i}"] for i in range(count)]
    yield exact("labels for each frame", [len(one) for one in features], [len(one) for one in labels])
    margins = recorded["min_margin_sq"]
    if golden.has(ATTRIBUTES):
        width = golden.json(ATTRIBUTES)["n_features_in_"]
        yield exact("width of the real features", {one.shape[1] for one in features} == {width}, True)
    if not golden.has(REAL):
        yield Row("labels by the real centres", 0, EXACT, f"{REAL} is absent", compared=False)
        return
    real = golden.arrays(REAL)
    attributes = golden.json(ATTRIBUTES)
    shape = [attributes["n_clusters"], attributes["n_features_in_"]]
    yield exact("shape of the real centres", real["cluster_centers"].shape, shape)
    norms = np.linalg.norm(real["cluster_centers"], axis=1)
    yield close(
        "norms of the real centres", [norms.min(), norms.mean(), norms.max()], attributes["center_norm_min_mean_max"],
        WHOLE,
    )  # fmt: skip
    yield exact("frames of each real cluster, all counted", real["counts"].shape, shape[:1])
    found = [kmeans.assign(one, real["cluster_centers"]) for one in features]
    yield labelled("labels by the real centres", found, [one.tolist() for one in labels])
    found = [margin(one, real["cluster_centers"]) for one in features]
    yield close("margins of the labels", found, margins, WHOLE, relative=True)


def margin(features: np.ndarray, centers: np.ndarray) -> float:
    """The smallest gap between the best and the second squared distance, in float64."""
    x, c = features.astype(np.float64), centers.astype(np.float64)
    best = np.partition((x**2).sum(1)[:, None] - 2 * x @ c.T + (c**2).sum(1), 1)
    return (best[:, 1] - best[:, 0]).min()


def checks(golden: Golden) -> Iterator[Row]:
    """Both models."""
    yield from tiny_checks(golden)
    yield from real_checks(golden)
