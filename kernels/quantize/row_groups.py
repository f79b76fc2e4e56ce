"""Rows grouped by expert: which are owned, and room between the groups so that blocks of rows do not straddle two.

Letters: N rows, D features, E experts, P rows with the room.
"""

import torch
from torch import Tensor


def mask_unowned(x_ND: Tensor, offsets_E: Tensor) -> Tensor:
    """Returns x_ND with zeros in the rows beyond the last offset, whose content is undefined.

    On a CPU, where looking at the offset costs nothing, it is x_ND itself if there are none.
    """
    if x_ND.device.type == "cpu" and int(offsets_E[-1]) == len(x_ND):
        return x_ND
    owned_N1 = torch.arange(len(x_ND), device=x_ND.device).unsqueeze(1) < offsets_E[-1]
    return torch.where(owned_N1, x_ND, 0.0)


def spread_groups(x_ND: Tensor, offsets_E: Tensor, *, multiple: int) -> tuple[Tensor, Tensor]:
    """Returns the rows with each expert's filled up with zeros to a multiple, x_PD, and where the experts then end.

    P = N + E * (multiple - 1), rounded up to a multiple, whatever the offsets: the shape must not depend on them.

    Args:
        x_ND: rows in expert order, zeros beyond the last offset.
        offsets_E: int32 ends of the experts' rows.
        multiple: of rows.
    """
    if multiple == 1:
        return x_ND, offsets_E
    num_rows, num_experts = len(x_ND), len(offsets_E)
    starts_E = torch.cat([torch.zeros_like(offsets_E[:1]), offsets_E[:-1]])
    spread_counts_E = (offsets_E - starts_E + (multiple - 1)) // multiple * multiple
    spread_ends_E = spread_counts_E.cumsum(0, dtype=torch.int32)
    moved_E = spread_ends_E - spread_counts_E - starts_E
    row_N = torch.arange(num_rows, dtype=torch.int32, device=x_ND.device)
    # Unowned rows, which are zero, move with the last expert's.
    expert_N = torch.searchsorted(offsets_E, row_N, right=True).clamp_(max=num_experts - 1)
    num_spread = -(-(num_rows + num_experts * (multiple - 1)) // multiple) * multiple
    x_PD = x_ND.new_zeros(num_spread, x_ND.shape[1]).index_copy(0, (row_N + moved_E[expert_N]).long(), x_ND)
    return x_PD, spread_ends_E
