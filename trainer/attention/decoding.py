"""Decoding: one position at a time, from what is kept of those before it.

Letters: B sequences, L positions so far, H query heads, G key-value heads, d query and key head dim, e value head dim.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Past(NamedTuple):
    """What one attention layer keeps between two positions; which tensors is its own affair.

    Attributes:
        num_positions: how many positions there have been, the same for all sequences.
        kept: tensors whose first dimension is that of the sequences.
    """

    num_positions: int
    kept: tuple[Tensor, ...]

    @property
    def num_values(self) -> int:
        """Numbers kept for one sequence."""
        return sum(tensor[:1].numel() for tensor in self.kept)


def attend_once(
    query_BHd: Tensor,
    key_BLGd: Tensor,
    value_BLGe: Tensor,
    *,
    scale: float,
    sinks_H: Tensor | None = None,
    sees_BGL: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns out_BHe and the float32 weights_BHL of one query over the positions it sees, all by default.

    As `trainer.attention.scaled_dot_product` has it for all positions: query head i reads key-value head i // (H / G),
    a sink takes weight and has no value.
    """
    query_BGhd = query_BHd.unflatten(1, (key_BLGd.shape[2], -1))
    scores_BGhL = torch.einsum("bghd,blgd->bghl", query_BGhd, key_BLGd) * scale
    scores_BGhL = scores_BGhL.to(torch.promote_types(scores_BGhL.dtype, torch.float32))
    if sees_BGL is not None:
        scores_BGhL = scores_BGhL.masked_fill(~sees_BGL.unsqueeze(2), -torch.inf)
    if sinks_H is not None:
        sink_Gh1 = sinks_H.to(scores_BGhL.dtype).unflatten(0, (key_BLGd.shape[2], -1)).unsqueeze(-1)
        scores_BGhL = torch.cat([scores_BGhL, sink_Gh1.expand(len(scores_BGhL), -1, -1, -1)], dim=-1)
    weights_BGhL = scores_BGhL.softmax(-1)[..., : key_BLGd.shape[1]]
    out_BGhe = torch.einsum("bghl,blge->bghe", weights_BGhL.to(value_BLGe.dtype), value_BLGe)
    return out_BGhe.flatten(1, 2), weights_BGhL.flatten(1, 2)
