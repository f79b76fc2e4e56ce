"""Kimi delta attention.

Letters: B sequences, L positions, D model dim, H heads, d head dim.
"""

import torch
from torch import Tensor, nn

from trainer.attention.base import Attention
from trainer.attention.decay import Decay
from trainer.attention.delta_rule import chunked_delta_rule, unit_length
from trainer.attention.short_convolution import ShortConvolution
from trainer.config.attention import KimiDeltaAttentionConfig
from trainer.model.attention_size import KDA_CHUNK
from trainer.model.norm import RMSNorm


class KimiDeltaAttention(Attention):
    """Linear attention by the delta rule with a decay per key feature (`trainer.attention.delta_rule`).

    Queries, keys and values pass a short convolution; queries and keys have length 1; decay and output gate are made
    through rank d. Positions are told by convolution and decay, there is no rotation.

    Source: Kimi Linear, arXiv:2510.26692, section 3 (recurrence) and section 4 (this layer).
    """

    residual_weights = ("out.weight",)

    def __init__(self, config: KimiDeltaAttentionConfig, *, dim: int, norm_eps: float) -> None:
        super().__init__(config, dim=dim, norm_eps=norm_eps)
        self.num_heads = config.num_heads
        width = config.num_heads * config.head_dim
        self.query, self.key, self.value = (nn.Linear(dim, width, bias=False) for _ in range(3))
        self.query_conv, self.key_conv, self.value_conv = (ShortConvolution(width, config.conv_size) for _ in range(3))
        self.decay_down = nn.Linear(dim, config.head_dim, bias=False)
        self.decay_up = nn.Linear(config.head_dim, width, bias=False)
        self.decay = Decay(config.num_heads, config.head_dim)
        self.strength = nn.Linear(dim, config.num_heads, bias=False)
        self.gate_down = nn.Linear(dim, config.head_dim, bias=False)
        self.gate_up = nn.Linear(config.head_dim, width, bias=False)
        self.norm = RMSNorm(config.head_dim, eps=norm_eps)
        self.out = nn.Linear(width, dim, bias=False)

    def special_start(self, name: str, generator: torch.Generator) -> Tensor | None:
        """Returns the starts of the convolutions and of the decay."""
        owner, _, inner = name.partition(".")
        module = self.get_submodule(owner)
        if isinstance(module, Decay):
            return module.start(inner, generator)
        return module.start(generator) if isinstance(module, ShortConvolution) else None

    def forward(self, x_BLD: Tensor) -> Tensor:
        query, key, value = (
            conv(linear(x_BLD)).unflatten(-1, (self.num_heads, -1))
            for conv, linear in (
                (self.query_conv, self.query),
                (self.key_conv, self.key),
                (self.value_conv, self.value),
            )
        )
        log_decay_BLHd = self.decay(self.decay_up(self.decay_down(x_BLD)))
        strength_BLH = self.strength(x_BLD).to(log_decay_BLHd.dtype).sigmoid()
        # The memory adds up over the whole sequence: float32 also under autocast.
        with torch.autocast(x_BLD.device.type, enabled=False):
            attended_BLHd, _ = chunked_delta_rule(
                unit_length(query.to(log_decay_BLHd.dtype)),
                unit_length(key.to(log_decay_BLHd.dtype)),
                value.to(log_decay_BLHd.dtype),
                log_decay_BLHd=log_decay_BLHd,
                strength_BLH=strength_BLH,
                chunk_size=KDA_CHUNK,
            )
        gate_BLHd = self.gate_up(self.gate_down(x_BLD)).unflatten(-1, (self.num_heads, -1)).sigmoid()
        return self.out((self.norm(attended_BLHd) * gate_BLHd).flatten(-2))
