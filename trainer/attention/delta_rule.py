"""The gated delta rule: a memory that forgets, and that corrects what it holds for a key instead of adding to it.

Letters: B sequences, L positions, H heads, d key head dim, e value head dim, N chunks, C positions of a chunk.

Per head the memory S is a d x e matrix. With decay a_t in (0, 1] per key feature, strength b_t, key k_t, value v_t:

    S_t = (I - b_t k_t k_t^T) diag(a_t) S_{t-1} + b_t k_t v_t^T,    o_t = S_t^T q_t / sqrt(d)

Sources: Kimi Linear, arXiv:2510.26692, eq. 1 (a decay per feature); gated DeltaNet, arXiv:2412.06464, eq. 10 (one decay
per head: the log_decay below then has a single feature).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.attention.documents import Documents


def recurrent_delta_rule(
    query_BLHd: Tensor,
    key_BLHd: Tensor,
    value_BLHe: Tensor,
    *,
    log_decay_BLHd: Tensor,
    strength_BLH: Tensor,
    state_BHde: Tensor | None = None,
    documents: Documents | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns out_BLHe and the memory after the last position, one position at a time: the reference, and decoding.

    Args:
        log_decay_BLHd: log a_t, at most 0; the last dimension may be 1.
        state_BHde: the memory to begin with; None for an empty one.
        documents: of which each begins with an empty memory, but for the first, which goes on with `state_BHde`.
    """
    batch, seq_len, num_heads, key_dim = key_BLHd.shape
    state = (
        state_BHde if state_BHde is not None else key_BLHd.new_zeros(batch, num_heads, key_dim, value_BLHe.shape[-1])
    )
    outputs = []
    for t in range(seq_len):
        if documents is not None and t > 0:
            state = state.masked_fill(documents.is_first_BL[:, t, None, None, None], 0.0)
        state = state * log_decay_BLHd[:, t].exp().unsqueeze(-1)
        held = torch.einsum("bhd,bhde->bhe", key_BLHd[:, t], state)
        correction = strength_BLH[:, t].unsqueeze(-1) * (value_BLHe[:, t] - held)
        state = state + key_BLHd[:, t].unsqueeze(-1) * correction.unsqueeze(-2)
        outputs.append(torch.einsum("bhd,bhde->bhe", query_BLHd[:, t] * key_dim**-0.5, state))
    return torch.stack(outputs, dim=1), state


def chunked_delta_rule(
    query_BLHd: Tensor,
    key_BLHd: Tensor,
    value_BLHe: Tensor,
    *,
    log_decay_BLHd: Tensor,
    strength_BLH: Tensor,
    chunk_size: int,
    state_BHde: Tensor | None = None,
    documents: Documents | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns what `recurrent_delta_rule` returns, a chunk of positions at a time.

    Let G_i be the sum of the log-decays of a chunk up to position i and u_i = b_i (v_i - what S holds for k_i). Then
    S_i = diag(exp G_i) S_0 + sum_{j<=i} diag(exp(G_i - G_j)) k_j u_j^T, so the u of a chunk solve the triangular system

        u_i + b_i sum_{j<i} (k_i^T diag(exp(G_i - G_j)) k_j) u_j = b_i (v_i - S_0^T diag(exp G_i) k_i)

    Every exponent is at most 0: nothing overflows, however strong the decay. With a decay per feature this takes
    exp(G_i - G_j) for each pair of a chunk and each feature, time and memory L * C * d: chunks should be small there.

    With documents the sums, also that of G_i, run over positions of i's document; S_0 counts for positions of the
    document that the chunk before ended in, and what a chunk leaves was written in the document that it ends in.

    Sources: arXiv:2510.26692, section 3.1; arXiv:2412.06464, section 3.3. There exp(G_i - G_j) is a product of two
    factors where that is safe, for the sake of tensor cores.
    """
    seq_len, key_dim, value_dim = key_BLHd.shape[1], key_BLHd.shape[-1], value_BLHe.shape[-1]
    chunk_size = min(chunk_size, seq_len)
    # Filling with strength 0 and decay 1 leaves the memory as it is.
    query, key, value, log_decay, strength = (
        _chunks(x, chunk_size)
        for x in (query_BLHd * key_dim**-0.5, key_BLHd, value_BLHe, log_decay_BLHd, strength_BLH.unsqueeze(-1))
    )
    shared = None if documents is None else _shared(documents, chunk_size)
    total = log_decay.cumsum(-2) if shared is None else _sum_within(log_decay, shared)
    key_products, query_products = _decayed_products(query, key, total, shared)
    # The diagonal is not read: the system's is 1.
    fading = total.exp()
    if shared is not None:
        fading = fading * shared.with_state
    known = torch.cat([value, key * fading], dim=-1) * strength
    solved = torch.linalg.solve_triangular(key_products * strength, known, upper=False, unitriangular=True)
    fresh, faded_key = solved.split([value_dim, key_dim], dim=-1)
    faded_query = query * fading
    last = total[..., -1:, :]
    until_last = last - total if shared is None else (last - total).masked_fill(~shared.with_last, -torch.inf)
    remaining_key = (key * until_last.exp()).transpose(-1, -2)
    remaining = last.exp().transpose(-1, -2)
    if shared is not None:
        remaining = remaining * shared.with_state[..., -1:, :]
    state = state_BHde if state_BHde is not None else key.new_zeros(*key.shape[:2], key_dim, value_dim)
    outputs = []
    for chunk in range(key.shape[2]):
        correction = fresh[:, :, chunk] - faded_key[:, :, chunk] @ state
        outputs.append(faded_query[:, :, chunk] @ state + query_products[:, :, chunk] @ correction)
        state = remaining[:, :, chunk] * state + remaining_key[:, :, chunk] @ correction
    out_BHLe = torch.stack(outputs, dim=2).flatten(2, 3)
    return out_BHLe.transpose(1, 2)[:, :seq_len], state


def unit_length(x_BLHd: Tensor) -> Tensor:
    """Returns queries or keys of length 1 (shorter below 0.001), so that the memory's update never overshoots."""
    return x_BLHd * (x_BLHd.square().sum(-1, keepdim=True) + 1e-6).rsqrt()


def _chunks(x_BLHd: Tensor, chunk_size: int) -> Tensor:
    """Returns x_BHNCd, filled with zeros to a whole number of chunks."""
    filling = -x_BLHd.shape[1] % chunk_size
    if filling:
        x_BLHd = F.pad(x_BLHd, (0, 0, 0, 0, 0, filling))
    return x_BLHd.transpose(1, 2).unflatten(2, (-1, chunk_size))


class _Shared(NamedTuple):
    """Whether two positions of a chunk are of one document; shapes broadcast with (B, H, N, C, anything)."""

    between: Tensor
    """Positions i and j of the chunk: (B, 1, N, C, C)."""
    with_last: Tensor
    """Position i and the chunk's last: (B, 1, N, C, 1)."""
    with_state: Tensor
    """Position i and the one before the chunk; for the first chunk, the first of all: (B, 1, N, C, 1)."""


def _shared(documents: Documents, chunk_size: int) -> _Shared:
    index_BL = documents.index_BL
    filling = -index_BL.shape[1] % chunk_size
    # Filled with the last document: what fills up leaves its memory as it is.
    filled_BL = torch.cat([index_BL, index_BL[:, -1:].expand(-1, filling)], dim=1)
    index_B1NC = filled_BL.unflatten(1, (-1, chunk_size)).unsqueeze(1)
    last_B1N1 = index_B1NC[..., -1:]
    before_B1N1 = torch.cat([index_B1NC[:, :, :1, :1], last_B1N1[:, :, :-1]], dim=2)
    return _Shared(
        between=index_B1NC.unsqueeze(-1) == index_B1NC.unsqueeze(-2),
        with_last=(index_B1NC == last_B1N1).unsqueeze(-1),
        with_state=(index_B1NC == before_B1N1).unsqueeze(-1),
    )


def _sum_within(log_decay_BHNCd: Tensor, shared: _Shared) -> Tensor:
    """Returns the sums up to each position over its document: exact, where a difference of running sums is not."""
    num_heads = log_decay_BHNCd.shape[1]
    # Heads and features as columns of one product, which keeps one table for all of them.
    columns = log_decay_BHNCd.permute(0, 2, 3, 1, 4).flatten(-2)
    sums = shared.between.squeeze(1).tril().to(columns.dtype) @ columns
    return sums.unflatten(-1, (num_heads, -1)).permute(0, 3, 1, 2, 4)


def _decayed_products(query: Tensor, key: Tensor, total: Tensor, shared: _Shared | None) -> tuple[Tensor, Tensor]:
    """Returns k_i^T diag(exp(G_i - G_j)) k_j, and the same with q_i, for j <= i, else 0: twice (B, H, N, C, C)."""
    chunk_size = key.shape[-2]
    is_hidden = torch.ones(chunk_size, chunk_size, dtype=torch.bool, device=key.device).triu(1)
    if shared is not None:
        is_hidden = is_hidden | ~shared.between
    if total.shape[-1] == 1:
        decay = (total - total.transpose(-1, -2)).masked_fill(is_hidden, -torch.inf).exp()
        return (key @ key.transpose(-1, -2)) * decay, (query @ key.transpose(-1, -2)) * decay
    between = total.unsqueeze(-2) - total.unsqueeze(-3)
    decayed_key = between.masked_fill(is_hidden.unsqueeze(-1), -torch.inf).exp() * key.unsqueeze(-3)
    products = decayed_key @ torch.stack([key, query], dim=-1)
    return products[..., 0], products[..., 1]
