"""First-fit packing of utterances into rows of one instruction each, which goes on after a restart where it was."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import grain

from viavsp_jax.data.packing import Arrays, RowShape, to_row

# Rows of one instruction that a stream fills at the same time. Mostly the first of them fills up and the others hold
# little. With 8 of them VASR rows would be 0.1 % fuller, rows of three utterances 0.7 %.
OPEN_ROWS = 4

Numbered = tuple[int, Arrays]  # an utterance (see packing.ToUtterance) and its index in the dataset


class OpenRow:
    """Utterances that will be a row, and where in the dataset they are from."""

    def __init__(self, shape: RowShape):
        self.utterances: list[Arrays] = []
        self.indices: list[int] = []
        self._left = shape.clips, shape.positions, shape.frames, shape.labels

    def takes(self, index: int, utterance: Arrays) -> bool:
        """Adds an utterance with the instruction of the others; does not where there is no room for it."""
        positions = len(utterance["tokens"])
        if self.utterances:
            positions -= len(utterance["instruction"])
        # Those of a clip are one slot: it has its own room for frames.
        needed = 1, positions, len(utterance["frame_slot"]), len(utterance["targets"])
        left = tuple(has - needs for has, needs in zip(self._left, needed, strict=True))
        if min(left) < 0:
            return False
        self._left = left
        self.utterances.append(utterance)
        self.indices.append(index)
        return True


def first_fit(rows: list[OpenRow], shape: RowShape, index: int, utterance: Arrays) -> OpenRow | None:
    """Puts an utterance into one of the open rows of its instruction, the oldest first, or into a new one.

    Returns the row that is done for that, if there is one. Raises ValueError if no row has room for it.
    """
    done = None
    if not any(row.takes(index, utterance) for row in rows):
        if len(rows) == OPEN_ROWS:
            done = rows.pop(0)
        rows.append(_row(shape, {index: utterance}))
    return done


def _row(shape: RowShape, utterances: Mapping[int, Arrays]) -> OpenRow:
    """One with these in it. Raises ValueError if it has no room for them."""
    row = OpenRow(shape)
    if not all(row.takes(*numbered) for numbered in utterances.items()):
        raise ValueError(f"utterances {list(utterances)} do not fit a row of {shape}")
    return row


class PackedRows(grain.IterDataset):
    """The rows that first fit makes of a dataset of utterances, those of each instruction apart.

    An utterance goes to the first open row of its instruction that has room for it. If there is none, a new one is
    opened; where OPEN_ROWS are open, the oldest of them is done. Those that are open at the end follow.
    """

    def __init__(self, utterances: grain.MapDataset, shape: RowShape, options: grain.ReadOptions):
        """`options` are for reading; no utterance needs more than a row of `shape` holds."""
        self._numbered = utterances.map_with_index(lambda index, utterance: (index, utterance))
        super().__init__(self._numbered.to_iter_dataset(options))
        self._shape, self._options = shape, options

    def __iter__(self) -> grain.DatasetIterator:
        def again(indices: Sequence[int]) -> Iterable[Numbered]:
            return grain.MapDataset.source(indices).map(self._numbered.__getitem__).to_iter_dataset(self._options)

        return _Iterator(iter(self._parent), self._shape, again)


class _Iterator(grain.DatasetIterator):
    """The rows one by one; the state is how far the utterances were read, and which of them are in open rows."""

    def __init__(
        self,
        numbered: grain.DatasetIterator,
        shape: RowShape,
        again: Callable[[Sequence[int]], Iterable[Numbered]],
    ):
        """`numbered` are the utterances, of which `again` reads those of some indices once more."""
        super().__init__(numbered)
        self._shape, self._again = shape, again
        self._open: dict[bytes, list[OpenRow]] = {}  # by instruction, the oldest first

    def __next__(self) -> Arrays:
        for numbered in self._parent:
            if (done := first_fit(self._rows_for(numbered[1]), self._shape, *numbered)) is not None:
                return to_row(done.utterances, self._shape)
        for rows in self._open.values():
            if rows:
                return to_row(rows.pop(0).utterances, self._shape)
        raise StopIteration

    def _rows_for(self, utterance: Arrays) -> list[OpenRow]:
        """Those that are open for its instruction."""
        return self._open.setdefault(utterance["instruction"].tobytes(), [])

    def get_state(self) -> dict[str, Any]:
        """As JSON."""
        rows = [row.indices.copy() for rows in self._open.values() for row in rows]
        return {"parent": self._parent.get_state(), "open": rows}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Reads the utterances of open rows again.

        That of an earlier version, whose packer had other rows, names none: it stands before what was in them.
        """
        self._parent.set_state(state["parent"])
        rows, self._open = state.get("open", []), {}
        utterances = dict(self._again([index for indices in rows for index in indices]))
        for indices in rows:
            row = _row(self._shape, {index: utterances[index] for index in indices})
            self._rows_for(row.utterances[0]).append(row)
