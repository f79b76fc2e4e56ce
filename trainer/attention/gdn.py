"""Gated DeltaNet.

Letters: B sequences, L positions, D model dim, H heads, d key head dim, e value head dim.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from trainer.attention.decay import Decay
from trainer.attention.delta_attention import DeltaRuleAttention
from trainer.attention.short_convolution import ShortConvolution
from trainer.config.attention import GatedDeltaNetConfig
from trainer.model.attention_size import GDN_CHUNK
from trainer.model.norm import RMSNorm


class GatedDeltaNet(DeltaRuleAttention):
    """Linear attention by the delta rule with one decay per head (`trainer.attention.delta_rule`).

    Queries, keys and values pass a short convolution; queries and keys have length 1; the result of a head is
    normalised and gated. Positions are told by convolution and decay, there is no rotation.

    Source: Yang et al. 2024, arXiv:2412.06464, eq. 10 and section 3.4.
    """

    chunk_size = GDN_CHUNK

    def __init__(self, config: GatedDeltaNetConfig, *, dim: int, norm_eps: float) -> None:
        super().__init__(config, dim=dim, norm_eps=norm_eps)
        self.num_heads = config.num_heads
        key_width, value_width = config.num_heads * config.head_dim, config.num_heads * config.v_head_dim
        self.query = nn.Linear(dim, key_width, bias=False)
        self.key = nn.Linear(dim, key_width, bias=False)
        self.value = nn.Linear(dim, value_width, bias=False)
        self.query_conv = ShortConvolution(key_width, config.conv_size)
        self.key_conv = ShortConvolution(key_width, config.conv_size)
        self.value_conv = ShortConvolution(value_width, config.conv_size)
        self.decay_in = nn.Linear(dim, config.num_heads, bias=False)
        self.decay = Decay(config.num_heads, 1)
        self.strength = nn.Linear(dim, config.num_heads, bias=False)
        self.gate = nn.Linear(dim, value_width, bias=False)
        self.norm = RMSNorm(config.v_head_dim, eps=norm_eps)
        self.out = nn.Linear(value_width, dim, bias=False)

    def log_decay(self, x_BLD: Tensor) -> Tensor:
        return self.decay(self.decay_in(x_BLD))

    def output_gate(self, x_BLD: Tensor) -> Tensor:
        return F.silu(self.gate(x_BLD))
