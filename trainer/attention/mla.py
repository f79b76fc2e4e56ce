"""Multi-head latent attention.

Letters: B sequences, L positions, D model dim, H heads, C key-value latent, n features without position, r rotated
features, d = n + r, v value head dim.
"""

import torch
from torch import Tensor, nn

from trainer.attention.base import Attention
from trainer.attention.decoding import Past, attend_once
from trainer.attention.documents import Documents
from trainer.attention.rope import rotate
from trainer.attention.scaled_dot_product import causal_attention
from trainer.config.attention import MultiHeadLatentAttentionConfig
from trainer.model.norm import RMSNorm


class MultiHeadLatentAttention(Attention):
    """Keys and values of all heads are made from one latent of C features; a key of r features tells positions.

    Source: DeepSeek-V2, arXiv:2405.04434, eq. 9-11 (`kv_down`, `kv_up`), 12-13 (`query`), 14-19; the latents are
    normalised as in the released models.

    The latent and the rotated key are all a decoder has to keep per position, C + r numbers: `kv_up` can be taken into
    the queries and into `out`, since q . (U c) = (U^T q) . c. Training expands them, which costs less.
    """

    residual_weights = ("out.weight",)

    def __init__(self, config: MultiHeadLatentAttentionConfig, *, dim: int, norm_eps: float) -> None:
        super().__init__(config, dim=dim, norm_eps=norm_eps)
        self.num_heads = config.num_heads
        self.nope_dim, self.rope_dim = config.qk_nope_head_dim, config.qk_rope_head_dim
        self.value_dim = config.v_head_dim
        self.latent_dim = config.kv_lora_rank
        self.rope_theta = config.rope_theta
        query_width = config.num_heads * (self.nope_dim + self.rope_dim)
        self.query: nn.Module
        if config.q_lora_rank is None:
            self.query = nn.Linear(dim, query_width, bias=False)
        else:
            self.query = _LowRank(dim, query_width, rank=config.q_lora_rank, norm_eps=norm_eps)
        self.kv_down = nn.Linear(dim, self.latent_dim + self.rope_dim, bias=False)
        self.kv_norm = RMSNorm(self.latent_dim, eps=norm_eps)
        self.kv_up = nn.Linear(self.latent_dim, config.num_heads * (self.nope_dim + self.value_dim), bias=False)
        self.out = nn.Linear(config.num_heads * self.value_dim, dim, bias=False)

    def forward(self, x_BLD: Tensor, documents: Documents | None = None) -> Tensor:
        query_BLHd = self.query(x_BLD).unflatten(-1, (self.num_heads, -1))
        query_BLHn, query_BLHr = query_BLHd.split([self.nope_dim, self.rope_dim], dim=-1)
        latent_BLC, key_BLr = self.kv_down(x_BLD).split([self.latent_dim, self.rope_dim], dim=-1)
        expanded = self.kv_up(self.kv_norm(latent_BLC)).unflatten(-1, (self.num_heads, -1))
        key_BLHn, value_BLHv = expanded.split([self.nope_dim, self.value_dim], dim=-1)
        # Copies: a slice that begins at an odd place cannot be seen as pairs, contiguous (one position) or not.
        query_BLHr = rotate(query_BLHr.clone(memory_format=torch.contiguous_format), theta=self.rope_theta)
        key_BL1r = rotate(key_BLr.clone(memory_format=torch.contiguous_format).unsqueeze(2), theta=self.rope_theta)
        attended_BLHv = causal_attention(
            torch.cat([query_BLHn, query_BLHr], dim=-1),
            torch.cat([key_BLHn, key_BL1r.expand(-1, -1, self.num_heads, -1)], dim=-1),
            value_BLHv,
            documents=documents,
        )
        return self.out(attended_BLHv.flatten(-2))

    def decode(self, x_BD: Tensor, past: Past | None) -> tuple[Tensor, Past]:
        """Keeps the normalised latents and the rotated keys; they serve all heads as keys, the latents as values."""
        position = 0 if past is None else past.num_positions
        query_BHn, query_BHr = (
            self.query(x_BD).unflatten(-1, (self.num_heads, -1)).split([self.nope_dim, self.rope_dim], dim=-1)
        )
        latent_BC, key_Br = self.kv_down(x_BD).split([self.latent_dim, self.rope_dim], dim=-1)
        turned_BHr, turned_Br = (
            rotate(x.clone(memory_format=torch.contiguous_format), theta=self.rope_theta, first=position).squeeze(1)
            for x in (query_BHr.unsqueeze(1), key_Br[:, None, None])
        )
        latent_BLC, key_BLr = self.kv_norm(latent_BC).unsqueeze(1), turned_Br
        if past is not None:
            latent_BLC, key_BLr = (
                torch.cat(both, dim=1) for both in zip(past.kept, (latent_BLC, key_BLr), strict=True)
            )
        up_HmC = self.kv_up.weight.unflatten(0, (self.num_heads, -1))
        key_up_HnC, value_up_HvC = up_HmC.split([self.nope_dim, self.value_dim], dim=1)
        attended_BHC, _ = attend_once(
            torch.cat([torch.einsum("bhn,hnc->bhc", query_BHn, key_up_HnC), turned_BHr], dim=-1),
            torch.cat([latent_BLC, key_BLr], dim=-1).unsqueeze(2),
            latent_BLC.unsqueeze(2),
            scale=(self.nope_dim + self.rope_dim) ** -0.5,
        )
        attended_BHv = torch.einsum("bhc,hvc->bhv", attended_BHC, value_up_HvC)
        return self.out(attended_BHv.flatten(-2)), Past(position + 1, (latent_BLC, key_BLr))


class _LowRank(nn.Module):
    """A projection through a normalised latent (eq. 12-13)."""

    def __init__(self, dim: int, width: int, *, rank: int, norm_eps: float) -> None:
        super().__init__()
        self.down = nn.Linear(dim, rank, bias=False)
        self.norm = RMSNorm(rank, eps=norm_eps)
        self.up = nn.Linear(rank, width, bias=False)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self.up(self.norm(self.down(x_BLD)))
