"""Grouped-query attention with rotary positions.

Letters: B sequences, L positions, D model dim, H query heads, G key-value heads, d head dim.
"""

import torch
from torch import Tensor, nn

from trainer.attention.base import Attention
from trainer.attention.decoding import Past, attend_once
from trainer.attention.documents import Documents
from trainer.attention.rope import rotate
from trainer.attention.scaled_dot_product import causal_attention
from trainer.config.attention import GroupedQueryAttentionConfig
from trainer.model.norm import RMSNorm


class GroupedQueryAttention(Attention):
    """H query heads share G key-value heads; H == G is multi-head attention.

    Sources: Ainslie et al. 2023, arXiv:2305.13245; norm of queries and keys per head: Henry et al. 2020,
    arXiv:2010.04245, with RMSNorm and a gain per feature as Qwen3 has it, arXiv:2505.09388; over all heads at once as
    OLMoE has it, arXiv:2409.02060. Window and sinks: `trainer.attention.scaled_dot_product`.
    """

    residual_weights = ("out.weight",)

    def __init__(self, config: GroupedQueryAttentionConfig, *, dim: int, norm_eps: float) -> None:
        super().__init__(config, dim=dim, norm_eps=norm_eps)
        self.num_heads = config.num_heads
        self.num_kv_heads = config.num_kv_heads
        self.head_dim = config.head_dim
        self.rope_theta = config.rope_theta
        self.window = config.window
        width = config.num_heads * config.head_dim
        kv_width = config.num_kv_heads * config.head_dim
        self.query = nn.Linear(dim, width, bias=config.bias != "none")
        self.key = nn.Linear(dim, kv_width, bias=config.bias != "none")
        self.value = nn.Linear(dim, kv_width, bias=config.bias != "none")
        self.out = nn.Linear(width, dim, bias=config.bias == "all")
        self.norm_per_head = config.qk_norm_over == "head"
        query_norm_dim, key_norm_dim = (config.head_dim,) * 2 if self.norm_per_head else (width, kv_width)
        self.query_norm = RMSNorm(query_norm_dim, eps=norm_eps) if config.qk_norm else None
        self.key_norm = RMSNorm(key_norm_dim, eps=norm_eps) if config.qk_norm else None
        self.sinks_H = nn.Parameter(torch.zeros(config.num_heads)) if config.sinks else None

    def special_start(self, name: str, generator: torch.Generator) -> Tensor | None:
        """Returns zeros for biases and sinks: a sink then is as likely as a key of score 0."""
        parameter = self.get_parameter(name)
        return torch.zeros(parameter.shape) if name == "sinks_H" or name.endswith(".bias") else None

    def forward(self, x_BLD: Tensor, documents: Documents | None = None) -> Tensor:
        query_BLHd, key_BLGd, value_BLGd = self._rotated(x_BLD, first=0)
        attended_BLHd = causal_attention(
            query_BLHd, key_BLGd, value_BLGd, window=self.window, sinks_H=self.sinks_H, documents=documents
        )
        return self.out(attended_BLHd.flatten(-2))

    def decode(self, x_BD: Tensor, past: Past | None) -> tuple[Tensor, Past]:
        """Keeps the rotated keys and the values, of the window where there is one."""
        position = 0 if past is None else past.num_positions
        query_B1Hd, key_BLGd, value_BLGd = self._rotated(x_BD.unsqueeze(1), first=position)
        if past is not None:
            key_BLGd, value_BLGd = (
                torch.cat(both, dim=1) for both in zip(past.kept, (key_BLGd, value_BLGd), strict=True)
            )
        if self.window is not None:
            key_BLGd, value_BLGd = key_BLGd[:, -self.window :], value_BLGd[:, -self.window :]
        attended_BHd, _ = attend_once(
            query_B1Hd.squeeze(1), key_BLGd, value_BLGd, scale=self.head_dim**-0.5, sinks_H=self.sinks_H
        )
        return self.out(attended_BHd.flatten(-2)), Past(position + 1, (key_BLGd, value_BLGd))

    def _rotated(self, x_BLD: Tensor, *, first: int) -> tuple[Tensor, Tensor, Tensor]:
        """Returns query_BLHd, key_BLGd and value_BLGd, the first two rotated."""
        query_BLHd = _heads(self.query(x_BLD), self.num_heads, self.query_norm, per_head=self.norm_per_head)
        key_BLGd = _heads(self.key(x_BLD), self.num_kv_heads, self.key_norm, per_head=self.norm_per_head)
        value_BLGd = _heads(self.value(x_BLD), self.num_kv_heads, None, per_head=True)
        query_BLHd = rotate(query_BLHd, theta=self.rope_theta, first=first)
        return query_BLHd, rotate(key_BLGd, theta=self.rope_theta, first=first), value_BLGd


def _heads(features: Tensor, num_heads: int, norm: RMSNorm | None, *, per_head: bool) -> Tensor:
    """Returns the features as heads, normalised before or after they are split."""
    if norm is not None and not per_head:
        features = norm(features)
    heads = features.unflatten(-1, (num_heads, -1))
    return norm(heads) if norm is not None and per_head else heads
