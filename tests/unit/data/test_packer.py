"""Laws of packing, on random utterances of several instructions, and what a restart has to go on with."""

import collections
import json

import grain
import hypothesis.strategies as st
import jax
import numpy as np
from hypothesis import given, settings

from viavsp_jax.data.packer import OPEN_ROWS, PackedRows
from viavsp_jax.data.packing import INSTRUCTION, RowShape

SHAPE = RowShape(positions=60, frames=48, labels=30, clips=4, window=60)
OPTIONS = grain.ReadOptions(num_threads=2, prefetch_buffer_size=3)


def make_utterance(number, kind, runs, label):
    """Utterance `number`, as ToUtterance makes them, with instruction `kind` of kind + 1 tokens; None for no runs."""
    if not runs:
        return None
    instruction, start = np.full(kind + 1, 100 + kind, np.int32), kind + 1 + len(runs)
    return {
        "features": np.full((sum(runs), 1), number + 1, np.float32),
        "frame_slot": (kind + 1 + np.repeat(np.arange(len(runs)), runs)).astype(np.int32),
        "tokens": np.concatenate([instruction, np.zeros(len(runs)), np.full(label - 1, number)]).astype(np.int32),
        "is_speech": np.repeat([False, True, False], [kind + 1, len(runs), label - 1]),
        "label_index": (start - 1 + np.arange(label)).astype(np.int32),
        "targets": np.full(label, number, np.int32),
        "weights": np.full(label, 1 / label, np.float32),
        "instruction": instruction,
    }


# (instruction, runs of frames, label tokens) of each; records that are left out have none.
UTTERANCES = st.lists(
    st.tuples(st.integers(0, 2), st.lists(st.integers(1, 3), max_size=12), st.integers(1, 12)), min_size=1, max_size=60
)


def rows_of(drawn):
    utterances = [make_utterance(number, *one) for number, one in enumerate(drawn)]
    return utterances, PackedRows(
        grain.MapDataset.source(range(len(drawn))).map(utterances.__getitem__), SHAPE, OPTIONS
    )


@settings(max_examples=60, deadline=None)
@given(UTTERANCES)
def test_rows_hold_every_utterance_once_and_one_instruction(drawn):
    utterances, rows = rows_of(drawn)
    found = collections.Counter()
    for row in rows:
        before = row["segment_ids"] == INSTRUCTION
        kind = before.sum() - 1
        assert row["tokens"][before].tolist() == [100 + kind] * (kind + 1) and before[: kind + 1].all()
        count = row["segment_ids"].max() - INSTRUCTION
        assert 1 <= count <= SHAPE.clips and len(row["tokens"]) == SHAPE.positions
        assert [len(row[name]) for name in ("features", "targets")] == [SHAPE.frames, SHAPE.labels]
        frames = labels = 0
        for segment in range(INSTRUCTION + 1, INSTRUCTION + 1 + count):
            (places,) = np.nonzero(row["segment_ids"] == segment)
            shift = places[0] - kind - 1
            number = row["targets"][labels]
            one = utterances[number]
            found[int(number)] += 1
            assert drawn[number][0] == kind
            here = slice(frames, frames := frames + len(one["features"]))
            assert (row["features"][here] == one["features"]).all()
            assert (row["frame_slot"][here] == one["frame_slot"] + shift).all()
            here = slice(labels, labels := labels + len(one["targets"]))
            assert (row["label_index"][here] == one["label_index"] + shift).all()
            assert (row["weights"][here] == one["weights"]).all() and (row["targets"][here] == number).all()
            for name in ("tokens", "is_speech"):
                assert (row[name][places] == one[name][kind + 1 :]).all()
            assert (row["positions"][places] == np.arange(kind + 1, len(one["tokens"]))).all()
        assert (row["frame_slot"][frames:] == SHAPE.positions).all() and not row["weights"][labels:].any()
    assert found == {number: 1 for number, one in enumerate(utterances) if one is not None}


@settings(max_examples=15, deadline=None)
@given(UTTERANCES)
def test_a_restart_after_any_row_goes_on_with_the_next(drawn):
    _, rows = rows_of(drawn)
    stream, states, expected = iter(rows), [], []
    states.append(json.dumps(stream.get_state()))
    for row in stream:
        expected.append(row)
        states.append(json.dumps(stream.get_state()))
    for done, state in enumerate(states):
        again = iter(rows)
        next(again, None)  # somewhere else
        again.set_state(json.loads(state))
        assert json.dumps(again.get_state()) == state
        jax.tree.map(np.testing.assert_array_equal, list(again), expected[done:])


def test_the_oldest_row_is_done_first():
    """Though an almost full one may never get what would fill it: no utterance waits for more than OPEN_ROWS rows."""
    rng = np.random.default_rng(0)
    drawn = [(0, [1] * int(rng.integers(1, 30)), 1) for _ in range(1000)]
    firsts, lasts = [], []
    for row in rows_of(drawn)[1]:
        numbers = row["targets"][row["weights"] > 0]
        firsts.append(numbers.min())
        lasts.append(numbers.max())
    assert firsts == sorted(firsts)
    assert all(last < first for last, first in zip(lasts, firsts[OPEN_ROWS:], strict=False))


def test_the_state_of_an_earlier_version_goes_on_where_its_open_rows_began():
    """As Grain's packer wrote it, of which rows 0 and 1 of 4 were read."""
    drawn = [(0, [2, 3], 4)] * 40
    _, rows = rows_of(drawn)
    stream = iter(rows)
    stream.set_state({"parent": {"next_index": 16}, "next_row": 2, "counter": 2})
    assert [row["targets"][0] for row in stream] == list(range(16, 40, 4))
