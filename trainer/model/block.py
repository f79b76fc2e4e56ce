"""One layer of the transformer.

Letters: B sequences, L positions, D model dim.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from kernels import Routing
from trainer.attention import ATTENTIONS
from trainer.attention.decoding import Past
from trainer.attention.documents import Documents
from trainer.config.attention import AttentionConfig
from trainer.config.model import ModelConfig
from trainer.model.dense_mlp import DenseMLP
from trainer.model.moe_layer import MoELayer
from trainer.model.norm import RMSNorm


class Block(nn.Module):
    """Attention, then a feed-forward network, each normalised before and added to the residual stream.

    What is added is multiplied by `scales.residual` first.

    Source: pre-norm: Xiong et al. 2020, arXiv:2002.04745.
    """

    def __init__(self, config: ModelConfig, *, kind: Literal["dense", "moe"], attention: AttentionConfig) -> None:
        super().__init__()
        self.residual_scale = config.scales.residual
        self.attention_norm = RMSNorm(config.dim, eps=config.norm_eps)
        self.attention = ATTENTIONS[attention.kind](attention, dim=config.dim, norm_eps=config.norm_eps)
        self.feed_forward_norm = RMSNorm(config.dim, eps=config.norm_eps)
        self.feed_forward: DenseMLP | MoELayer
        if kind == "dense":
            self.feed_forward = DenseMLP(config.dim, config.hidden_dim, activation=config.activation)
        else:
            assert config.moe is not None, "ModelConfig.layer_kinds names MoE layers only when there is a MoEConfig"
            self.feed_forward = MoELayer(config.moe, dim=config.dim)

    def forward(
        self, x_BLD: Tensor, tokens_BL: Tensor | None = None, documents: Documents | None = None
    ) -> tuple[Tensor, Routing | None]:
        """Returns the residual stream after this layer, and the routing if the layer has experts.

        `tokens_BL` are the tokens of the vocabulary, for routers that choose by them; `documents` are kept apart by the
        attention.
        """
        attended_BLD = self.attention(self.attention_norm(x_BLD), documents)
        return self._fed_forward(x_BLD, attended_BLD, tokens_BL)

    def decode(self, x_BD: Tensor, tokens_B: Tensor, past: Past | None) -> tuple[Tensor, Past]:
        """Returns the residual stream of the next position, and the attention's past for the one after it."""
        attended_BD, past = self.attention.decode(self.attention_norm(x_BD), past)
        x_B1D, _ = self._fed_forward(x_BD.unsqueeze(1), attended_BD.unsqueeze(1), tokens_B.unsqueeze(1))
        return x_B1D.squeeze(1), past

    def _fed_forward(
        self, x_BLD: Tensor, attended_BLD: Tensor, tokens_BL: Tensor | None
    ) -> tuple[Tensor, Routing | None]:
        x_BLD = torch.add(x_BLD, attended_BLD, alpha=self.residual_scale)
        normalised_BLD = self.feed_forward_norm(x_BLD)
        if isinstance(self.feed_forward, MoELayer):
            out_BLD, routing = self.feed_forward(normalised_BLD, tokens_BL)
        else:
            out_BLD, routing = self.feed_forward(normalised_BLD), None
        return torch.add(x_BLD, out_BLD, alpha=self.residual_scale), routing
