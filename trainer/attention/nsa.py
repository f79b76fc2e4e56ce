"""Native sparse attention.

Letters: B sequences, L positions, D model dim, H query heads, G key-value heads, d head dim, M compressed blocks,
N selection blocks.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.attention.base import Attention
from trainer.attention.decoding import Past, attend_once
from trainer.attention.documents import Documents
from trainer.attention.nsa_blocks import Blocks, blocks_of_documents, blocks_of_sequence
from trainer.attention.rope import rotate
from trainer.attention.scaled_dot_product import causal_attention
from trainer.config.attention import NativeSparseAttentionConfig


class NativeSparseAttention(Attention):
    """Three attentions with keys and values of their own, added with gates from the input.

    Compressed: blocks of positions, each made into one key and value. Selected: all positions of the blocks that the
    compressed attention weighs most, the same for the heads of a group. Window: the last positions.

    Source: Yuan et al. 2025, arXiv:2502.11089, eq. 5-12, with the first block, the query's own and the one before
    always selected as in its section 4.1. The paper leaves open: the compression here is a two-layer perceptron over
    the block's features, whose bias is the position encoding inside the block; only selected and windowed keys are
    rotated; a query before the end of the first compressed block gets nothing from that branch.

    With documents each has its own blocks, counted from its first position: nothing spans two of them, and a document
    has the output it has alone.

    This form computes all scores of the selected branch and hides what is not selected, which is correct and saves
    nothing: it is for studying what the method learns, not how fast it is.
    """

    residual_weights = ("out.weight",)

    def __init__(self, config: NativeSparseAttentionConfig, *, dim: int, norm_eps: float) -> None:
        super().__init__(config, dim=dim, norm_eps=norm_eps)
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        self.block_size, self.stride = config.compression_block_size, config.compression_stride
        self.selection_block_size = config.selection_block_size
        self.num_selected_blocks = config.num_selected_blocks
        self.window = config.window
        self.rope_theta = config.rope_theta
        width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.query = nn.Linear(dim, width, bias=False)
        self.key = nn.Linear(dim, 3 * kv_width, bias=False)
        self.value = nn.Linear(dim, 3 * kv_width, bias=False)
        self.gate = nn.Linear(dim, 3 * config.num_heads, bias=False)
        self.compress_key = _Compression(config.head_dim, self.block_size)
        self.compress_value = _Compression(config.head_dim, self.block_size)
        self.out = nn.Linear(width, dim, bias=False)

    def special_start(self, name: str, generator: torch.Generator) -> Tensor | None:
        """Returns zeros for the biases of the compression."""
        return torch.zeros(self.get_parameter(name).shape) if name.endswith(".bias") else None

    def forward(self, x_BLD: Tensor, documents: Documents | None = None) -> Tensor:
        query_BLHd = self.query(x_BLD).unflatten(-1, (self.num_heads, -1))
        keys = self.key(x_BLD).unflatten(-1, (3, self.num_kv_heads, -1)).unbind(2)
        values = self.value(x_BLD).unflatten(-1, (3, self.num_kv_heads, -1)).unbind(2)
        rotated_BLHd = rotate(query_BLHd, theta=self.rope_theta)
        blocks = self._blocks(x_BLD, documents)
        compressed, weights_BHLM = self._compressed(query_BLHd, keys[0], values[0], blocks)
        selected = _masked_attention(
            rotated_BLHd,
            rotate(keys[1], theta=self.rope_theta),
            values[1],
            sees_BGLL=self._selected_positions(weights_BHLM.detach(), blocks, documents),
        )
        windowed = causal_attention(
            rotated_BLHd,
            rotate(keys[2], theta=self.rope_theta),
            values[2],
            window=self.window,
            documents=documents,
        )
        return self._gated(x_BLD, (compressed, selected, windowed))

    def decode(self, x_BD: Tensor, past: Past | None) -> tuple[Tensor, Past]:
        """Keeps the compressed blocks and what the next is made from, all selectable positions, and the window's."""
        position = 0 if past is None else past.num_positions
        query_BHd = self.query(x_BD).unflatten(-1, (self.num_heads, -1))
        keys, values = (
            linear(x_BD).unflatten(-1, (3, self.num_kv_heads, -1)).unsqueeze(1).unbind(2)
            for linear in (self.key, self.value)
        )
        rotated_BHd = rotate(query_BHd.unsqueeze(1), theta=self.rope_theta, first=position).squeeze(1)
        fresh = [keys[0], values[0]]
        for key, value in zip(keys[1:], values[1:], strict=True):
            fresh += [rotate(key, theta=self.rope_theta, first=position), value]
        none = (keys[0][:, :0],) * 8
        small_key, small_value, *before = none if past is None else past.kept
        raw_key, raw_value, key_BLGd, value_BLGd, last_key, last_value = (
            torch.cat(both, dim=1) for both in zip(before, fresh, strict=True)
        )
        raw_key, raw_value = raw_key[:, -self.block_size :], raw_value[:, -self.block_size :]
        last_key, last_value = last_key[:, -self.window :], last_value[:, -self.window :]
        over = position + 1 - self.block_size
        if over >= 0 and over % self.stride == 0:
            small_key = torch.cat([small_key, self.compress_key(raw_key.transpose(1, 2).unsqueeze(1))], dim=1)
            small_value = torch.cat([small_value, self.compress_value(raw_value.transpose(1, 2).unsqueeze(1))], dim=1)
        scale = query_BHd.shape[-1] ** -0.5
        compressed, weights_BHM = attend_once(query_BHd, small_key, small_value, scale=scale)
        is_selected_BG1N = self._selected_blocks(
            weights_BHM.unsqueeze(2),
            torch.arange(small_key.shape[1], device=x_BD.device) * self.stride,
            torch.full((1,), position, device=x_BD.device),
            num_blocks=position // self.selection_block_size + 1,
        )
        sees_BGL = is_selected_BG1N.squeeze(2).repeat_interleave(self.selection_block_size, dim=-1)
        selected, _ = attend_once(
            rotated_BHd, key_BLGd, value_BLGd, scale=scale, sees_BGL=sees_BGL[..., : position + 1]
        )
        windowed, _ = attend_once(rotated_BHd, last_key, last_value, scale=scale)
        kept = (small_key, small_value, raw_key, raw_value, key_BLGd, value_BLGd, last_key, last_value)
        return self._gated(x_BD, (compressed, selected, windowed)), Past(position + 1, kept)

    def _gated(self, x: Tensor, branches: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Returns the output for the input of all positions, or of one, and what the branches made of it."""
        gates = self.gate(x).sigmoid().unflatten(-1, (self.num_heads, 3)).unbind(-1)
        mixed = sum(gate.unsqueeze(-1) * branch for gate, branch in zip(gates, branches, strict=True))
        assert isinstance(mixed, Tensor)
        return self.out(mixed.flatten(-2))

    def _blocks(self, x_BLD: Tensor, documents: Documents | None) -> Blocks:
        if documents is not None:
            return blocks_of_documents(documents, size=self.block_size, stride=self.stride)
        return blocks_of_sequence(x_BLD.shape[1], size=self.block_size, stride=self.stride, device=x_BLD.device)

    def _compressed(
        self, query_BLHd: Tensor, key_BLGd: Tensor, value_BLGd: Tensor, blocks: Blocks
    ) -> tuple[Tensor, Tensor]:
        """Returns the branch's out_BLHd, and its float32 weights_BHLM: zero for blocks that are not over (eq. 7-8)."""
        seq_len, heads_per_group = query_BLHd.shape[1], self.num_heads // self.num_kv_heads
        if seq_len < self.block_size:
            num_slots = blocks.block_place.shape[-1]
            return torch.zeros_like(query_BLHd), query_BLHd.new_zeros(
                query_BLHd.shape[0], self.num_heads, seq_len, num_slots
            )
        key_BMHd = self.compress_key(self._cut(key_BLGd, blocks)).repeat_interleave(heads_per_group, dim=2)
        value_BMHd = self.compress_value(self._cut(value_BLGd, blocks)).repeat_interleave(heads_per_group, dim=2)
        scores_BHLM = torch.einsum("blhd,bmhd->bhlm", query_BLHd, key_BMHd) * query_BLHd.shape[-1] ** -0.5
        # A row of -inf alone would be 0/0: the first rows are soft over everything, and then cleared.
        scores_BHLM = scores_BHLM.to(torch.promote_types(scores_BHLM.dtype, torch.float32))
        masked_BHLM = scores_BHLM.masked_fill(blocks.is_hidden, torch.finfo(scores_BHLM.dtype).min)
        weights_BHLM = masked_BHLM.softmax(-1).masked_fill(blocks.is_hidden, 0.0)
        out_BLHd = torch.einsum("bhlm,bmhd->blhd", weights_BHLM.to(value_BMHd.dtype), value_BMHd)
        return out_BLHd, weights_BHLM

    def _cut(self, x_BLGd: Tensor, blocks: Blocks) -> Tensor:
        """Returns the positions of each compressed block as x_BMGld."""
        if blocks.position_BMl is None:
            return x_BLGd.unfold(1, self.block_size, self.stride).transpose(-1, -2)
        sequence_B11 = torch.arange(len(x_BLGd), device=x_BLGd.device)[:, None, None]
        return x_BLGd[sequence_B11, blocks.position_BMl].transpose(2, 3)

    def _selected_positions(self, weights_BHLM: Tensor, blocks: Blocks, documents: Documents | None) -> Tensor:
        """Returns sees_BGLL: the positions of the blocks selected for each query that are not after it (eq. 9-12)."""
        seq_len, size = weights_BHLM.shape[-2], self.selection_block_size
        is_selected_BGLN = self._selected_blocks(
            weights_BHLM, blocks.block_place, blocks.place, num_blocks=-(-seq_len // size)
        )
        if documents is None:
            sees_BGLL = is_selected_BGLN.repeat_interleave(size, dim=-1)[..., :seq_len]
            return sees_BGLL & (blocks.place <= blocks.place[:, None])
        block_of_B11L = (blocks.place // size).unsqueeze(2)
        block_of_BGLL = block_of_B11L.expand(-1, is_selected_BGLN.shape[1], seq_len, -1)
        return is_selected_BGLN.gather(-1, block_of_BGLL) & documents.sees_BLL.unsqueeze(1)

    def _selected_blocks(self, weights_BHLM: Tensor, block_place: Tensor, place: Tensor, *, num_blocks: int) -> Tensor:
        """Returns is_selected_BGLN of queries at these places, `Blocks` says in which shapes."""
        device, size = weights_BHLM.device, self.selection_block_size
        # A compressed block lies in a selection block with so many of its strides.
        first_M1 = block_place.unsqueeze(-1)
        start_N = torch.arange(num_blocks, device=device) * size
        common_MN = torch.minimum(first_M1 + self.block_size, start_N + size) - torch.maximum(first_M1, start_N)
        strides_MN = (common_MN.clamp(min=0) // self.stride).to(weights_BHLM.dtype)
        with torch.autocast(device.type, enabled=False):
            group_BGLM = weights_BHLM.unflatten(1, (self.num_kv_heads, -1)).sum(2)
            score_BGLN = group_BGLM @ strides_MN
        own_L1 = (place // size).unsqueeze(-1)
        block_N = torch.arange(num_blocks, device=device)
        always_LN = (block_N == 0) | (block_N == own_L1) | (block_N == own_L1 - 1)
        score_BGLN = score_BGLN.masked_fill(always_LN, torch.inf).masked_fill(block_N > own_L1, -torch.inf)
        # Stable: among equals the earlier block, however many blocks the sequence goes on for.
        order_BGLN = score_BGLN.argsort(dim=-1, descending=True, stable=True)
        is_selected_BGLN = torch.zeros_like(score_BGLN, dtype=torch.bool)
        is_selected_BGLN.scatter_(-1, order_BGLN[..., : self.num_selected_blocks], True)
        return is_selected_BGLN


class _Compression(nn.Module):
    """Blocks of positions, each made into one vector per head."""

    def __init__(self, head_dim: int, block_size: int) -> None:
        super().__init__()
        self.inner = nn.Linear(block_size * head_dim, head_dim)
        self.outer = nn.Linear(head_dim, head_dim, bias=False)

    def forward(self, x_BMGld: Tensor) -> Tensor:
        """Returns x_BMGd for the positions of M blocks."""
        return self.outer(F.silu(self.inner(x_BMGld.flatten(-2))))


def _masked_attention(query_BLHd: Tensor, key_BLGd: Tensor, value_BLGd: Tensor, *, sees_BGLL: Tensor) -> Tensor:
    """Returns attention of each query over the positions it sees, which are the same for the heads of a group."""
    heads_per_group = query_BLHd.shape[2] // key_BLGd.shape[2]
    out_BHLd = F.scaled_dot_product_attention(
        query_BLHd.transpose(1, 2),
        key_BLGd.transpose(1, 2),
        value_BLGd.transpose(1, 2),
        attn_mask=sees_BGLL.repeat_interleave(heads_per_group, dim=1),
        enable_gqa=heads_per_group > 1,
    )
    return out_BHLd.transpose(1, 2)
