"""Where the blocks of native sparse attention lie, in a sequence or in each of its documents.

Letters: B sequences, L positions, M compressed blocks, l positions of a compressed block, N selection blocks. Without
documents the dimensions of B and of the heads (1) are left out: all sequences are cut alike.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.attention.documents import Documents


class Blocks(NamedTuple):
    """The compressed blocks, and who sees them.

    Attributes:
        place: of each position within its document, (L) or (B, 1, L).
        block_place: the place of each compressed block's first position, (M) or (B, 1, M).
        is_hidden: whether a query must not see a compressed block: (L, M) or (B, 1, L, M).
        position_BMl: the positions of each block; None without documents, where one begins every `stride` positions.
    """

    place: Tensor
    block_place: Tensor
    is_hidden: Tensor
    position_BMl: Tensor | None = None


def blocks_of_sequence(seq_len: int, *, size: int, stride: int, device: torch.device) -> Blocks:
    """Returns the whole blocks of a sequence that is one document; a query sees those that are over."""
    num_blocks = max(0, (seq_len - size) // stride + 1)
    place_L = torch.arange(seq_len, device=device)
    block_place_M = torch.arange(num_blocks, device=device) * stride
    return Blocks(place_L, block_place_M, block_place_M + size - 1 > place_L[:, None])


def blocks_of_documents(documents: Documents, *, size: int, stride: int) -> Blocks:
    """Returns the whole blocks of each document, counted from its first position; others' are hidden.

    The number of blocks depends on the documents, that of slots for them must not: slot m holds the block that begins
    at one of the positions m * stride to (m + 1) * stride - 1. There is at most one. Within a document blocks begin
    `stride` positions apart; and a whole block is `size >= stride` positions long, so the next document is no nearer.
    """
    place_BL = documents.place_BL
    seq_len = place_BL.shape[1]
    device = place_BL.device
    position_L = torch.arange(seq_len, device=device)
    # Positions that follow within the document decide whether a block is whole.
    is_whole_BL = torch.zeros_like(documents.is_first_BL)
    if seq_len >= size:
        same_BL = documents.index_BL[:, : seq_len - size + 1] == documents.index_BL[:, size - 1 :]
        is_whole_BL = F.pad(same_BL & (place_BL[:, : same_BL.shape[1]] % stride == 0), (0, size - 1), value=False)
    slots_BMs = F.pad(is_whole_BL, (0, -seq_len % stride), value=False).unflatten(1, (-1, stride))
    start_BM = slots_BMs.int().argmax(-1) + torch.arange(slots_BMs.shape[1], device=device) * stride
    start_BM = start_BM.clamp(max=seq_len - 1)
    exists_BM = slots_BMs.any(-1)
    last_BM = start_BM + size - 1
    is_seen_BLM = (
        (last_BM[:, None] <= position_L[:, None])
        & (documents.index_BL[:, :, None] == documents.index_BL.gather(1, start_BM)[:, None])
        & exists_BM[:, None]
    )
    position_BMl = (start_BM.unsqueeze(-1) + torch.arange(size, device=device)).clamp(max=seq_len - 1)
    return Blocks(
        place_BL.unsqueeze(1), place_BL.gather(1, start_BM).unsqueeze(1), ~is_seen_BLM.unsqueeze(1), position_BMl
    )
