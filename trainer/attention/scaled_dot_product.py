"""Causal softmax attention: whole or within a sliding window, with or without a learned sink per head.

Letters: B sequences, L positions, H query heads, G key-value heads, d query and key head dim, e value head dim,
W window, J keys of a block.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.attention.documents import Documents

_MASKED_QUERIES = 256
"""Queries that meet their keys at once under a mask."""


def causal_attention(
    query_BLHd: Tensor,
    key_BLGd: Tensor,
    value_BLGe: Tensor,
    *,
    window: int | None = None,
    sinks_H: Tensor | None = None,
    documents: Documents | None = None,
) -> Tensor:
    """Returns out_BLHe: softmax(query . key / sqrt(d)) over the positions a query sees, times their values.

    Query head i reads key-value head i // (H / G). Position i sees positions i - window + 1 to i, or all up to i. The
    time and memory of a window grow with L * W, not with L * L: a block of W queries is compared with its own keys
    and those of the block before. Source: Beltagy et al. 2020, arXiv:2004.05150, section 3.1, looking back only.

    A sink is the logit of one more key, whose value is zero: it takes weight from the others, so that a head can
    attend to nothing. Source: OpenAI 2025 (gpt-oss), arXiv:2508.10925.

    With `documents` a position sees none of another document: the scores then get a mask that is added to them.
    """
    scale = query_BLHd.shape[-1] ** -0.5
    if sinks_H is not None:
        # Score of a sink: one more feature, zero in every real key, so that the fused kernels need no mask for it.
        sink_BLH1 = (sinks_H / scale).to(query_BLHd.dtype).expand(query_BLHd.shape[:3]).unsqueeze(-1)
        query_BLHd = torch.cat([query_BLHd, sink_BLH1], dim=-1)
        key_BLGd = F.pad(key_BLGd, (0, 1))
    # The fused kernels want values as wide as keys, and a zero feature changes neither scores nor results.
    value_width = value_BLGe.shape[-1]
    if (missing := query_BLHd.shape[-1] - value_width) > 0:
        value_BLGe = F.pad(value_BLGe, (0, missing))
    elif missing < 0:
        assert sinks_H is None, "the sink is the last feature of queries and keys"
        query_BLHd, key_BLGd = F.pad(query_BLHd, (0, -missing)), F.pad(key_BLGd, (0, -missing))
    with_sink = sinks_H is not None
    seq_len = query_BLHd.shape[1]
    if window is None or window >= seq_len:
        mask = documents and documents.causal_mask(seq_len, with_sink=with_sink, dtype=query_BLHd.dtype)
        out_BLHe = _first_block(query_BLHd, key_BLGd, value_BLGe, scale=scale, with_sink=with_sink, mask=mask)
        return out_BLHe[..., :value_width]
    if documents is None:
        first_mask = None
        mask = _block_mask(window, with_sink=with_sink, device=query_BLHd.device, dtype=query_BLHd.dtype)
    else:
        first_mask = documents.causal_mask(window, with_sink=with_sink, dtype=query_BLHd.dtype)
        mask = documents.window_mask(window, with_sink=with_sink, dtype=query_BLHd.dtype)
    first = _first_block(
        query_BLHd[:, :window],
        key_BLGd[:, :window],
        value_BLGe[:, :window],
        scale=scale,
        with_sink=with_sink,
        mask=first_mask,
    )
    rest = _later_blocks(query_BLHd, key_BLGd, value_BLGe, window=window, scale=scale, with_sink=with_sink, mask=mask)
    return torch.cat([first, rest], dim=1)[..., :value_width]


def _first_block(
    query_BLHd: Tensor, key_BLGd: Tensor, value_BLGd: Tensor, *, scale: float, with_sink: bool, mask: Tensor | None
) -> Tensor:
    """Returns causal attention over all positions, or over those of them that the mask leaves.

    The sink is a key at position -1, whose own query is dropped; with a mask it needs none.
    """
    if with_sink:
        key_BLGd, value_BLGd = _with_sink(key_BLGd, value_BLGd)
    if mask is not None:
        return _masked(query_BLHd, key_BLGd, value_BLGd, scale=scale, mask=mask)
    if with_sink:
        query_BLHd = F.pad(query_BLHd, (0, 0, 0, 0, 1, 0))
    # enable_gqa lets the kernel read each key-value head for several query heads; on a CPU it is as fast as one
    # key-value head per query head, and 12 % faster than repeating them (B=16, L=128, H=4, G=2, d=32).
    out_BHLd = F.scaled_dot_product_attention(
        query_BLHd.transpose(1, 2),
        key_BLGd.transpose(1, 2),
        value_BLGd.transpose(1, 2),
        is_causal=True,
        scale=scale,
        enable_gqa=query_BLHd.shape[2] != key_BLGd.shape[2],
    )
    return out_BHLd.transpose(1, 2)[:, 1:] if with_sink else out_BHLd.transpose(1, 2)


def _masked(query_BLHd: Tensor, key_BJGd: Tensor, value_BJGd: Tensor, *, scale: float, mask: Tensor) -> Tensor:
    """Returns attention under a causal mask, additive (B, 1, L, J); keys before the first position come first.

    A kernel with a mask computes the hidden half too. On a CPU some queries at a time, with the keys up to the last of
    them, leave most of it out: forward and backward 29 ms instead of 41, causal alone 27 (B=2, L=1024, 4 heads of 32).
    """
    if query_BLHd.is_cuda and query_BLHd.shape[2] != key_BJGd.shape[2]:
        # Of the fused kernels there only the one without groups takes a mask.
        heads_per_group = query_BLHd.shape[2] // key_BJGd.shape[2]
        key_BJGd, value_BJGd = (x.repeat_interleave(heads_per_group, dim=2) for x in (key_BJGd, value_BJGd))
    seq_len, num_before = query_BLHd.shape[1], key_BJGd.shape[1] - query_BLHd.shape[1]
    size = seq_len if query_BLHd.is_cuda else _MASKED_QUERIES
    outputs = []
    for first in range(0, seq_len, size):
        end = min(first + size, seq_len)
        visible = num_before + end
        outputs.append(
            F.scaled_dot_product_attention(
                query_BLHd[:, first:end].transpose(1, 2),
                key_BJGd[:, :visible].transpose(1, 2),
                value_BJGd[:, :visible].transpose(1, 2),
                attn_mask=mask[:, :, first:end, :visible],
                scale=scale,
                enable_gqa=query_BLHd.shape[2] != key_BJGd.shape[2],
            )
        )
    out_BHLd = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)
    return out_BHLd.transpose(1, 2)


def _later_blocks(
    query_BLHd: Tensor,
    key_BLGd: Tensor,
    value_BLGd: Tensor,
    *,
    window: int,
    scale: float,
    with_sink: bool,
    mask: Tensor,
) -> Tensor:
    """Returns the positions from `window` on, as blocks that each look at themselves and the block before."""
    num_sequences, seq_len = query_BLHd.shape[:2]
    filling = -seq_len % window  # positions after the last one, which no real position sees
    query_BLHd, key_BLGd, value_BLGd = (
        F.pad(x, (0, 0, 0, 0, 0, filling)) if filling else x for x in (query_BLHd, key_BLGd, value_BLGd)
    )
    query = query_BLHd[:, window:].unflatten(1, (-1, window)).flatten(0, 1)
    key, value = (
        torch.cat([x[:, :-window].unflatten(1, (-1, window)), x[:, window:].unflatten(1, (-1, window))], dim=2)
        for x in (key_BLGd, value_BLGd)
    )
    key, value = key.flatten(0, 1), value.flatten(0, 1)
    if with_sink:
        key, value = _with_sink(key, value)
    out = F.scaled_dot_product_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        attn_mask=mask,
        scale=scale,
        enable_gqa=query.shape[2] != key.shape[2],
    )
    blocks = out.transpose(1, 2).unflatten(0, (num_sequences, -1))
    return blocks.flatten(1, 2)[:, : seq_len - window]


def _with_sink(key_BLGd: Tensor, value_BLGd: Tensor) -> tuple[Tensor, Tensor]:
    """Returns keys and values with the sink before them: the unit vector of the last feature, and zero."""
    sink_BLGd = torch.zeros_like(key_BLGd[:, :1])
    sink_BLGd[..., -1] = 1.0
    return torch.cat([sink_BLGd, key_BLGd], dim=1), F.pad(value_BLGd, (0, 0, 0, 0, 1, 0))


@lru_cache(maxsize=16)
def _block_mask(window: int, *, with_sink: bool, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Returns the additive mask_WJ of a block's queries over the keys of the block before, then its own."""
    # Evaluation may come first: a mask made in inference mode could not be saved for a backward pass later.
    with torch.inference_mode(False), torch.no_grad():
        distance_WJ = (
            torch.arange(window, device=device)[:, None] + window - torch.arange(2 * window, device=device)[None, :]
        )
        mask_WJ = torch.zeros(window, 2 * window, device=device, dtype=dtype)
        mask_WJ.masked_fill_((distance_WJ < 0) | (distance_WJ >= window), -torch.inf)
        return F.pad(mask_WJ, (1, 0)) if with_sink else mask_WJ
