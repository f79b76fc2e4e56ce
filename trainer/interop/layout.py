"""How one of our parameters lies in a checkpoint of Hugging Face's: its names there and its arrangement.

A rule goes both ways and is linear, so that gradients can be carried over by it as well as weights.

Letters: H heads, R rotated pairs per head, E experts, D model dim, F hidden dim.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


class Layout(ABC):
    """The arrangement of one of our tensors as one or more of theirs."""

    @abstractmethod
    def to_theirs(self, ours: Tensor) -> tuple[Tensor, ...]:
        """Returns their tensors, in the order of `Rule.theirs`."""

    @abstractmethod
    def to_ours(self, theirs: Sequence[Tensor]) -> Tensor:
        """Returns our tensor of theirs; the inverse of `to_theirs`."""


class Same(Layout):
    """One tensor, as it is."""

    def to_theirs(self, ours: Tensor) -> tuple[Tensor, ...]:
        return (ours,)

    def to_ours(self, theirs: Sequence[Tensor]) -> Tensor:
        (only,) = theirs
        return only


@dataclass(frozen=True)
class RotaryHalves(Layout):
    """Rows whose pairs of rotated features are adjacent in ours, half a head apart in theirs.

    Feature 2r + i of a head here is feature r + i * R there. Holds for a weight or a bias of `num_heads` heads, and for
    the gain of a norm over their features. The first `num_unrotated` rows of each head stay where they are.
    """

    num_heads: int
    num_unrotated: int = 0

    def to_theirs(self, ours: Tensor) -> tuple[Tensor, ...]:
        still, rotated = self._split(ours)
        halves = rotated.unflatten(1, (-1, 2)).transpose(1, 2).flatten(1, 2)
        return (torch.cat([still, halves], dim=1).flatten(0, 1),)

    def to_ours(self, theirs: Sequence[Tensor]) -> Tensor:
        (only,) = theirs
        still, rotated = self._split(only)
        pairs = rotated.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
        return torch.cat([still, pairs], dim=1).flatten(0, 1)

    def _split(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        heads = rows.unflatten(0, (self.num_heads, -1))
        return heads[:, : self.num_unrotated], heads[:, self.num_unrotated :]


@dataclass(frozen=True)
class ScaledRows(Layout):
    """The first `num_rows` rows there are `factor` times ours (all of them if None)."""

    factor: float
    num_rows: int | None = None

    def to_theirs(self, ours: Tensor) -> tuple[Tensor, ...]:
        return (self._scaled(ours, self.factor),)

    def to_ours(self, theirs: Sequence[Tensor]) -> Tensor:
        (only,) = theirs
        return self._scaled(only, 1.0 / self.factor)

    def _scaled(self, rows: Tensor, factor: float) -> Tensor:
        if factor == 1.0:
            return rows
        return torch.cat(
            [rows[: self.num_rows] * factor, rows[len(rows) if self.num_rows is None else self.num_rows :]]
        )


@dataclass(frozen=True)
class Both(Layout):
    """Two arrangements of a single tensor, one after the other on the way to theirs."""

    first: Layout
    second: Layout

    def to_theirs(self, ours: Tensor) -> tuple[Tensor, ...]:
        (between,) = self.first.to_theirs(ours)
        return self.second.to_theirs(between)

    def to_ours(self, theirs: Sequence[Tensor]) -> Tensor:
        return self.first.to_ours((self.second.to_ours(theirs),))


class GateUpPerExpert(Layout):
    """Stacked in ours, (E, 2, F, D); two (F, D) matrices per expert in theirs: gate and up by turns."""

    def to_theirs(self, ours: Tensor) -> tuple[Tensor, ...]:
        return tuple(ours.flatten(0, 1).unbind(0))

    def to_ours(self, theirs: Sequence[Tensor]) -> Tensor:
        return torch.stack(tuple(theirs)).unflatten(0, (-1, 2))


class GateAndUp(Layout):
    """Beside each other in ours, (E, 2, F, D); two stacks with the input dimension first in theirs, (E, D, F) each."""

    def to_theirs(self, ours: Tensor) -> tuple[Tensor, ...]:
        return tuple(ours.transpose(2, 3).unbind(1))

    def to_ours(self, theirs: Sequence[Tensor]) -> Tensor:
        return torch.stack(tuple(theirs), dim=1).transpose(2, 3)


class PerExpert(Layout):
    """Stacked and input dimension first in ours, (E, F, D); one (D, F) matrix per expert in theirs."""

    def to_theirs(self, ours: Tensor) -> tuple[Tensor, ...]:
        return tuple(ours.transpose(1, 2).unbind(0))

    def to_ours(self, theirs: Sequence[Tensor]) -> Tensor:
        return torch.stack(tuple(theirs)).transpose(1, 2)


@dataclass(frozen=True)
class Rule:
    """One tensor of ours and where it is in theirs.

    Attributes:
        ours: name in our state dict.
        theirs: names in their checkpoint; several where one of ours is split.
        layout: how it is arranged there.
        absent: if not every model has `ours`, the shape of theirs in one without: of zeros, or of no entries at all.
    """

    ours: str
    theirs: tuple[str, ...]
    layout: Layout = field(default_factory=Same)
    absent: tuple[int, ...] | None = None
