"""Laws that hold for whatever is packed, listed, scored or renamed. That of dedup is in test_dedup.py.

Letters: T frames, S positions, L labels.
"""

import argparse

import grain
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from edit_distance import distance
from hypothesis import given, settings
from small_run import DEMO_LLAMA

from convert import avhubert, names
from convert.to_hf import hugging_face_tensors
from viavsp_jax.data.packing import INSTRUCTION, RowShape, ToUtterance
from viavsp_jax.data.pipeline import packed_batches
from viavsp_jax.data.prompt import load_prompt
from viavsp_jax.evaluation.scoring import normalize, score
from viavsp_jax.models.avhubert.config import AVHubertConfig
from viavsp_jax.prepare.manifest_files import Clip, read_manifest, write_manifest
from viavsp_jax.prepare.transcripts import Cleaner
from viavsp_jax.runtime.errors import InputError

SHAPE = RowShape(positions=96, frames=40, labels=24, clips=3, window=80)
# Marks that combine, spaces of all kinds, letters of several bytes, of one character or two.
SOUP = st.text(
    st.sampled_from("aăạ\u0323\u0302\u0301ệe\u00a0 \u2003\t\n\u200b\u202e\ufeffđĐ😀ﬁ\u1100\u1161ß"), max_size=20
)


@pytest.fixture(scope="module")
def prompt():
    return load_prompt(DEMO_LLAMA, "</s>")


@st.composite
def clips(draw):
    """Records of 1 to 20 frames, each with a number of its own, and of 1 to 4 words."""
    lengths = draw(st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=5), min_size=1, max_size=12))
    found, first = [], 0
    for number, counts in enumerate(lengths):
        frames = np.arange(first, first := first + sum(counts), dtype=np.float32)[:, None] + 1
        words = draw(st.lists(st.sampled_from(["một", "hai", "ba"]), min_size=1, max_size=4))
        found.append({
            "id": str(number), "source_language": "vi", "target_language": "vi", "transcript": " ".join(words),
            "features": frames, "cluster_counts": np.array(counts, np.int32),
        })  # fmt: skip
    return found


def assert_holds(row, segment, clip, prompt):
    """One utterance of a row, whole and in order, is this clip."""
    (places,) = np.nonzero(row["segment_ids"] == segment)
    start, instruction, label = places[0], prompt.instruction("vi", "vi"), prompt.label(clip["transcript"])
    runs = len(clip["cluster_counts"])
    length = runs + len(label) - 1
    assert places.tolist() == list(range(start, start + length))
    assert row["positions"][places].tolist() == list(range(len(instruction), len(instruction) + length))
    assert row["tokens"][places].tolist() == [0] * runs + label[:-1]
    speech = start + np.arange(runs)
    assert np.flatnonzero(row["is_speech"] & (row["segment_ids"] == segment)).tolist() == speech.tolist()
    frames = np.isin(row["frame_slot"], speech)
    np.testing.assert_array_equal(row["features"][frames], clip["features"])
    np.testing.assert_array_equal(row["frame_slot"][frames], np.repeat(speech, clip["cluster_counts"]))
    labels = np.isin(row["label_index"], places) & (row["weights"] > 0)
    assert row["targets"][labels].tolist() == label
    assert row["label_index"][labels].tolist() == list(range(speech[-1], speech[-1] + len(label)))
    assert row["weights"][labels].sum() == pytest.approx(1)
    return len(clip["features"]), length, len(label)


@settings(max_examples=40)
@given(clips(), st.integers(1, 3))
def test_packed_rows_hold_each_utterance_once_and_whole(prompt, found, rows):
    dataset = grain.MapDataset.source(found)
    left = {frame: clip for clip in found for frame in clip["features"][:1, 0].tolist()}
    for batch in packed_batches(dataset, ToUtterance(prompt, SHAPE, np.float32), rows):
        for number in range(rows):
            row = {name: value[number] for name, value in batch.items()}
            instruction = prompt.instruction("vi", "vi") if row["segment_ids"].any() else []
            before = row["segment_ids"] == INSTRUCTION
            assert row["tokens"][before].tolist() == row["tokens"][: len(instruction)].tolist() == instruction
            assert row["positions"][before].tolist() == list(range(len(instruction)))
            used = np.array([0, len(instruction), 0])
            for segment in range(INSTRUCTION + 1, row["segment_ids"].max() + 1):
                first = row["frame_slot"] == np.flatnonzero((row["segment_ids"] == segment) & row["is_speech"])[0]
                clip = left.pop(float(row["features"][first][0, 0]))
                assert int(clip["id"]) % rows == number
                used += assert_holds(row, segment, clip, prompt)
            assert row["segment_ids"].max() <= INSTRUCTION + SHAPE.clips
            # Nothing else is in the row.
            masks = row["frame_slot"] < SHAPE.positions, row["segment_ids"] > 0, row["weights"] > 0
            assert [mask.sum() for mask in masks] == used.tolist()
            assert not row["features"][row["frame_slot"] == SHAPE.positions].any()
            assert row["features"].shape == (SHAPE.frames, 1) and row["tokens"].shape == (SHAPE.positions,)
    assert not left


@given(st.lists(st.tuples(SOUP.filter(normalize), SOUP), min_size=1, max_size=3))
def test_rates_of_any_text_are_edit_distances(pairs):
    result = score(*zip(*pairs, strict=True))
    references, hypotheses = ([normalize(text) for text in texts] for texts in zip(*pairs, strict=True))
    for name, parts in (("wer", str.split), ("cer", list)):
        errors = [distance(parts(r), parts(h)) for r, h in zip(references, hypotheses, strict=True)]
        assert result[name] == pytest.approx(sum(errors) / sum(len(parts(r)) for r in references))
    assert [normalize(text) for text in references] == references, "a second time changes nothing"


@given(st.lists(st.one_of(SOUP, st.text(max_size=30)), min_size=1, max_size=5))
def test_any_transcript_comes_back_from_a_manifest(tmp_path_factory, texts):
    folder = tmp_path_factory.getbasetemp() / "manifest"
    clean = Cleaner("vi", argparse.Namespace(lower_case=False, numbers_as_read=False, no_punctuation=False, tones=None))
    cleaned = [clean(text) for text in texts]
    assert [clean(text) for text in cleaned] == cleaned == [normalize(text) for text in texts]
    kept = [text for text in cleaned if text] or ["một"]
    clips = [Clip(f"a-{n}", "vi", "en", f"/v/{n}.mp4", f"/a/{n}.wav", 5, 9, t) for n, t in enumerate(kept)]
    write_manifest(folder, "train", "/", clips)
    assert read_manifest(folder, "train") == clips


def weights(layers: int, adapted: bool, tied: bool, gemma: bool) -> names.Tree:
    """Random weights under all our names, or without adapters or the head; sides differ, so that turns are seen.

    Gemma's norm behind attention has the name of LLaMA's norm before the feed-forward layers.
    """
    rng, flat = np.random.default_rng(layers), {}
    absent = f"llm/layers/{'ffn_norm' if gemma else 'attention_out_norm'}/scale"
    for ours, theirs, turned in names.TABLE:
        if ("/lora/" in ours and not adapted) or (ours == "llm/head" and tied) or ours == absent:
            continue
        shape = (3, 5) if turned or ours == "llm/embedding" else (4,)
        flat[ours] = rng.normal(size=((layers,) if "{layer}" in theirs else ()) + shape).astype(np.float32)
    return names.traverse_util.unflatten_dict(flat, sep="/")


@given(st.integers(1, 9), st.booleans(), st.booleans(), st.booleans())
def test_names_of_the_language_model_go_forth_and_back(layers, adapted, tied, gemma):
    ours = weights(layers, adapted, tied, gemma)
    found = names.tensors(ours)
    for told_apart in (lambda tensor: tensor.name, lambda tensor: tensor.reference_name, names.reference_order):
        assert len({told_apart(tensor) for tensor in found}) == len(found)
    theirs = hugging_face_tensors(ours)
    assert {tensor.name: tensor.shape for tensor in found} == {name: value.shape for name, value in theirs.items()}
    back = {path: np.full_like(value, np.nan) for path, value in names.flatten(ours).items()}
    for tensor in found:
        back[tensor.path][tensor.index] = tensor.to_ours(theirs[tensor.name])
    jax.tree.map(np.testing.assert_array_equal, back, names.flatten(ours))


@settings(max_examples=5)
@given(st.integers(1, 4), st.sampled_from(["concat", "add"]), st.booleans())
def test_names_of_the_encoder_go_forth_and_back(layers, fusion, first):
    sizes = {"embed_dim": 8, "num_heads": 2, "ffn_dim": 6, "audio_dim": 5, "frontend_channels": 2, "conv_pos": 4}
    config = AVHubertConfig(
        **sizes, num_layers=layers, resnet_channels=(2, 3, 4, 5), conv_pos_groups=2, modality_fuse=fusion,
        layer_norm_first=first,
    )  # fmt: skip
    rng = np.random.default_rng(layers)
    ours = jax.tree.map(lambda x: np.asarray(rng.integers(0, 99, x.shape), x.dtype), avhubert.abstract_params(config))
    theirs, found = avhubert.to_torch_names(ours), avhubert.tensors(ours)
    assert {tensor.name: tensor.shape for tensor in found} == {name: value.shape for name, value in theirs.items()}
    back = {path: np.full_like(value, -1) for path, value in names.flatten(ours).items()}
    for tensor in found:
        back[tensor.path][tensor.index] = tensor.to_ours(theirs[tensor.name])
    jax.tree.map(np.testing.assert_array_equal, back, names.flatten(ours))


plain_names = st.sets(st.from_regex(r"[a-z]{1,6}(\.[a-z0-9]{1,4}){0,2}", fullmatch=True), max_size=6)


@given(plain_names, plain_names)
def test_names_missing_and_unknown_are_all_listed(expected, found):
    if expected == found:
        names.check_names(expected, found, "here")
        return
    with pytest.raises(InputError) as caught:
        names.check_names(expected, found, "here")
    listed = dict(part.split(": ") for part in str(caught.value).split("; ")[1:])
    assert {what: set(text.split(", ")) for what, text in listed.items()} == {
        what: kept for what, kept in (("missing", expected - found), ("unknown", found - expected)) if kept
    }
