"""Which positions of a sequence belong to one document, where several are packed into it.

Letters: B sequences, L positions, W window, J keys of a block.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

_MaskKey = tuple[Literal["causal", "window"], int, bool, torch.dtype]


class Documents:
    """The documents of a batch, and the masks that keep them apart; all layers share them, so each is made once.

    Sources: Krell et al. 2021, arXiv:2107.02027 (packing without contamination); Zhao et al. 2024, arXiv:2402.13991
    (causal masking within documents, for pretraining).

    Args:
        index_BL: number of each position's document within its sequence: rises by any amount where one begins, never
            falls.
    """

    def __init__(self, index_BL: Tensor) -> None:
        self.index_BL = index_BL
        self._masks: dict[_MaskKey, Tensor] = {}

    @cached_property
    def is_first_BL(self) -> Tensor:
        """Whether a position is the first of its document, as the first of a sequence always is."""
        return F.pad(self.index_BL[:, 1:] != self.index_BL[:, :-1], (1, 0), value=True)

    @cached_property
    def first_BL(self) -> Tensor:
        """Where the document of each position begins, as a position of the sequence."""
        position_L = torch.arange(self.index_BL.shape[1], device=self.index_BL.device)
        return torch.where(self.is_first_BL, position_L, 0).cummax(dim=1).values

    @cached_property
    def place_BL(self) -> Tensor:
        """Number of each position within its document, from 0."""
        return torch.arange(self.index_BL.shape[1], device=self.index_BL.device) - self.first_BL

    @cached_property
    def sees_BLL(self) -> Tensor:
        """Which positions a position sees: those of its own document up to itself."""
        return (self.index_BL[:, :, None] == self.index_BL[:, None, :]).tril()

    def causal_mask(self, length: int, *, with_sink: bool, dtype: torch.dtype) -> Tensor:
        """Returns the additive mask_B1LL of the first `length` positions; with a sink, which all see, before them."""
        return self._additive(("causal", length, with_sink, dtype), lambda: self.sees_BLL[:, :length, :length])

    def window_mask(self, window: int, *, with_sink: bool, dtype: torch.dtype) -> Tensor:
        """Returns the additive mask_N1WJ of the blocks after the first, of `window` queries each.

        A block sees itself and the block before; N counts the blocks of all sequences, the last of each filled up.
        """
        return self._additive(("window", window, with_sink, dtype), lambda: self._sees_within(window))

    def _sees_within(self, window: int) -> Tensor:
        filling = -self.index_BL.shape[1] % window
        index_BNW = F.pad(self.index_BL, (0, filling), value=-1).unflatten(1, (-1, window))
        key_BNJ = torch.cat([index_BNW[:, :-1], index_BNW[:, 1:]], dim=2)
        device = self.index_BL.device
        distance_WJ = (
            torch.arange(window, device=device)[:, None] + window - torch.arange(2 * window, device=device)[None, :]
        )
        in_window_WJ = (distance_WJ >= 0) & (distance_WJ < window)
        return ((index_BNW[:, 1:, :, None] == key_BNJ[:, :, None, :]) & in_window_WJ).flatten(0, 1)

    def _additive(self, key: _MaskKey, sees: Callable[[], Tensor]) -> Tensor:
        if key not in self._masks:
            _, _, with_sink, dtype = key
            hidden = ~sees().unsqueeze(1)
            mask = torch.zeros(hidden.shape, device=hidden.device, dtype=dtype).masked_fill_(hidden, -torch.inf)
            self._masks[key] = F.pad(mask, (1, 0)) if with_sink else mask
        return self._masks[key]
