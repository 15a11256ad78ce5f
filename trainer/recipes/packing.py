"""Examples put into rows: by themselves, or several in a row of max_length tokens, each whole.

No example is cut and none is left out. A packed batch is one long row without padding; `position_ids` begin anew with
each example, and its first token is never learned, since it would follow from the example before.
"""

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from trainer.supervision import IGNORED, Example


def pack(lengths: Sequence[int], *, row_length: int) -> list[list[int]]:
    """Rows of indices, each of `row_length` tokens at most: the longest first, each where the least room is left.

    Best-fit decreasing: at most 11/9 of the fewest rows possible (and 6/9 of one).
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, row), sorted
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        place = bisect_left(room, (lengths[index], -1))
        if place == len(room):
            rows.append([])
            left, row = row_length, len(rows) - 1
        else:
            left, row = room.pop(place)
        rows[row].append(index)
        insort(room, (left - lengths[index], row))
    return rows


def as_rows(examples: Sequence[Example]) -> list[dict[str, list[int]]]:
    """One example a row."""
    return [{"input_ids": example.input_ids, "labels": example.labels} for example in examples]


def as_packed_rows(examples: Sequence[Example], *, row_length: int) -> list[dict[str, list[int]]]:
    """Several examples a row; `seq_lengths` says where they meet."""
    packed = pack([len(example.input_ids) for example in examples], row_length=row_length)
    return [row_of([examples[index] for index in row]) for row in packed]


def row_of(examples: Sequence[Example]) -> dict[str, list[int]]:
    """The examples, one after the other."""
    return {
        "input_ids": [token for example in examples for token in example.input_ids],
        "labels": [label for example in examples for label in example.labels],
        "seq_lengths": [len(example.input_ids) for example in examples],
    }


@dataclass(frozen=True, slots=True)
class Padded:
    """Rows to a batch, padded to the longest."""

    pad_token: int

    def __call__(self, rows: Sequence[Mapping[str, list[int]]]) -> dict[str, Any]:
        """(rows, longest row)."""
        tokens = [torch.tensor(row["input_ids"]) for row in rows]
        labels = [torch.tensor(row["labels"]) for row in rows]
        ones = [torch.ones_like(row) for row in tokens]
        return {
            "input_ids": pad_sequence(tokens, batch_first=True, padding_value=self.pad_token),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
            "attention_mask": pad_sequence(ones, batch_first=True, padding_value=0),
        }


@dataclass(frozen=True, slots=True)
class Flattened:
    """Rows to one row; a row without `seq_lengths` is one example."""

    def __call__(self, rows: Sequence[Mapping[str, list[int]]]) -> dict[str, Any]:
        """(1, all tokens)."""
        lengths = [length for row in rows for length in row.get("seq_lengths") or [len(row["input_ids"])]]
        positions = torch.cat([torch.arange(length) for length in lengths])
        labels = torch.tensor([label for row in rows for label in row["labels"]])
        bounds = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
        return {
            "input_ids": torch.tensor([[token for row in rows for token in row["input_ids"]]]),
            "labels": labels.masked_fill(positions == 0, IGNORED)[None],
            "position_ids": positions[None],
            "cu_seq_lens_q": bounds,
            "cu_seq_lens_k": bounds,
            "max_length_q": max(lengths),
            "max_length_k": max(lengths),
        }
