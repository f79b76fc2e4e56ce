"""Kimi delta attention.

Letters: B sequences, L positions, D model dim, H heads, d head dim.
"""

from torch import Tensor, nn

from trainer.attention.decay import Decay
from trainer.attention.delta_attention import DeltaRuleAttention
from trainer.attention.short_convolution import ShortConvolution
from trainer.config.attention import KimiDeltaAttentionConfig
from trainer.model.attention_size import KDA_CHUNK
from trainer.model.norm import RMSNorm


class KimiDeltaAttention(DeltaRuleAttention):
    """Linear attention by the delta rule with a decay per key feature (`trainer.attention.delta_rule`).

    Queries, keys and values pass a short convolution; queries and keys have length 1; decay and output gate are made
    through rank d. Positions are told by convolution and decay, there is no rotation.

    Source: Kimi Linear, arXiv:2510.26692, section 3 (recurrence) and section 4 (this layer).
    """

    chunk_size = KDA_CHUNK

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

    def log_decay(self, x_BLD: Tensor) -> Tensor:
        return self.decay(self.decay_up(self.decay_down(x_BLD)))

    def output_gate(self, x_BLD: Tensor) -> Tensor:
        return self.gate_up(self.gate_down(x_BLD)).sigmoid()
