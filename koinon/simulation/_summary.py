"""What a federated dataset looks like: how many examples its clients have, and of which labels."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import os
from collections.abc import Hashable
from typing import IO, Any

import numpy as np

from koinon._errors import MissingDependencyError
from koinon.computation import PackedSequences
from koinon.types import StructType, TensorType, Type

_LABEL_NAMES = ("y", "label", "labels")
_MAX_LABELS = 1000
_PLOTTED_LABELS = 10


@dataclasses.dataclass(frozen=True, eq=False)
class ClientDataSummary:
    """Sizes and labels of the clients of a federated dataset; prints as a table.

    Attributes:
      element_type: the type of one example.
      client_ids: the ids of the clients.
      sizes: int `[clients]`, the number of examples of each.
      labels: int `[classes]`, the labels that occur; None if examples have no label.
      label_counts: int `[clients, classes]`, how often each client has each label; None if examples have no label.
    """

    element_type: Type
    client_ids: tuple[Hashable, ...]
    sizes: np.ndarray
    labels: np.ndarray | None
    label_counts: np.ndarray | None

    @property
    def num_clients(self) -> int:
        """The number of clients."""
        return len(self.sizes)

    @property
    def num_examples(self) -> int:
        """The number of examples of all clients together."""
        return int(self.sizes.sum())

    def __repr__(self) -> str:
        lines = [f"examples  {self.element_type}"]
        if self.num_clients:
            sizes = self.sizes
            lines += [
                f"clients   {self.num_clients}, {int((sizes == 0).sum())} of them without examples",
                f"sizes     {self.num_examples} in all; a client has {_range_text(sizes)}, "
                f"median {np.median(sizes):g}, mean {sizes.mean():.1f}",
            ]
        else:
            lines.append("clients   none")
        if self.labels is not None and self.label_counts is not None and len(self.labels):
            per_client = (self.label_counts > 0).sum(1)
            lines += [
                f"labels    {len(self.labels)}; a client has {_range_text(per_client)} of them, "
                f"median {np.median(per_client):g}",
                "          " + _counts_text(self.labels, self.label_counts.sum(0)),
            ]
        return "\n".join(lines)

    def plot(self, path: str | os.PathLike[str] | IO[bytes]) -> None:
        """Draws the sizes of the clients, sorted, and the labels of each, to an image file.

        Args:
          path: the file; its suffix gives the format, for example `.png` or `.svg`. Or a binary file object, which gets
            a PNG.

        Raises:
          MissingDependencyError: if matplotlib is not installed.
        """
        try:
            figure_module = importlib.import_module("matplotlib.figure")
        except ImportError:
            raise MissingDependencyError("matplotlib", extra="plot", purpose="Plotting a federated dataset") from None
        # Without pyplot: no global state, and no window.
        figure = figure_module.Figure(figsize=(8, 4), layout="constrained")
        axes: Any = figure.subplots()
        order = np.argsort(-self.sizes, kind="stable")
        position, bottom = np.arange(self.num_clients), np.zeros(self.num_clients)
        if self.labels is None or self.label_counts is None or len(self.labels) > _PLOTTED_LABELS:
            axes.bar(position, self.sizes[order], width=1.0)
        else:
            for label, counts in zip(self.labels, self.label_counts.T, strict=True):
                axes.bar(position, counts[order], bottom=bottom, width=1.0, label=str(label))
                bottom += counts[order]
            axes.legend(title="label", bbox_to_anchor=(1.0, 1.0), loc="upper left", fontsize="small")
        axes.set_xlabel("clients, the largest first")
        axes.set_ylabel("examples")
        axes.set_title(f"{self.num_examples} examples of {self.num_clients} clients")
        figure.savefig(path)


def summarize(packed: PackedSequences, positions: np.ndarray, client_ids: tuple[Hashable, ...]) -> ClientDataSummary:
    """Counts the examples, and the labels if there are any, of some clients of packed data."""
    sizes = packed.lengths[positions].astype(np.int64)
    labels = label_counts = None
    leaf = _label_leaf(packed.element_type)
    if leaf is not None:
        starts = np.cumsum(sizes) - sizes
        client_of_row = np.repeat(np.arange(len(sizes)), sizes)
        rows = np.arange(sizes.sum()) - np.repeat(starts - packed.offsets[positions], sizes)
        found, codes = np.unique(np.asarray(packed.buffers[leaf])[rows], return_inverse=True)
        if len(found) <= _MAX_LABELS:
            labels = found
            flat = np.bincount(client_of_row * len(found) + codes, minlength=len(sizes) * len(found))
            label_counts = flat.reshape(len(sizes), len(found))
    return ClientDataSummary(packed.element_type, client_ids, sizes, labels, label_counts)


def merge_summaries(summaries: list[ClientDataSummary]) -> ClientDataSummary:
    """The summary of all clients from those of some of them each, one at least."""
    client_ids = tuple(itertools.chain.from_iterable(summary.client_ids for summary in summaries))
    sizes = np.concatenate([summary.sizes for summary in summaries])
    labels = label_counts = None
    counted = [(s.labels, s.label_counts) for s in summaries if s.labels is not None and s.label_counts is not None]
    if len(counted) == len(summaries):
        found = np.unique(np.concatenate([some_labels for some_labels, _ in counted]))
        if len(found) <= _MAX_LABELS:
            labels = found
            label_counts = np.zeros((len(sizes), len(found)), np.int64)
            rows = np.split(label_counts, np.cumsum([len(counts) for _, counts in counted])[:-1])
            for part, (some_labels, counts) in zip(rows, counted, strict=True):
                part[:, np.searchsorted(found, some_labels)] = counts
    return ClientDataSummary(summaries[0].element_type, client_ids, sizes, labels, label_counts)


def _label_leaf(element_type: Type) -> int | None:
    """The number of the buffer of the labels; None if examples have none."""
    if not isinstance(element_type, StructType):
        return None
    leaf = 0
    for name, field in element_type.items():
        if name in _LABEL_NAMES and isinstance(field, TensorType) and field.shape == () and _is_integer(field):
            return leaf
        leaf += _num_leaves(field)
    return None


def _is_integer(type_: TensorType) -> bool:
    return isinstance(type_.dtype, np.dtype) and type_.dtype.kind in "iu"


def _num_leaves(type_: Type) -> int:
    return sum(map(_num_leaves, type_.children())) if isinstance(type_, StructType) else 1


def _range_text(counts: np.ndarray) -> str:
    low, high = counts.min(), counts.max()
    return f"{low}" if low == high else f"{low} to {high}"


def _counts_text(labels: np.ndarray, counts: np.ndarray) -> str:
    parts = [f"{label}: {count}" for label, count in zip(labels[:10], counts[:10], strict=True)]
    return ", ".join(parts) + (", .." if len(labels) > 10 else "")
