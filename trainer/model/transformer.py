"""The decoder-only transformer.

Letters: B sequences, L positions, D model dim, V vocabulary.
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from trainer.attention.decoding import Past
from trainer.attention.documents import Documents
from trainer.config.model import ModelConfig
from trainer.model.block import Block
from trainer.model.cross_entropy import linear_cross_entropy
from trainer.model.moe_layer import MoELayer
from trainer.model.norm import RMSNorm
from trainer.model.routing import LayerRouting


class ModelOutput(NamedTuple):
    """What a forward pass returns.

    logits_BLV: float32 also under autocast, next-token logits of every position; None if targets were given.
    routings: one per mixture-of-experts layer, first to last; empty for a dense model.
    loss: float32 scalar, mean cross entropy over all positions in nats per token; None without targets.
    """

    logits_BLV: Tensor | None
    routings: tuple[LayerRouting, ...]
    loss: Tensor | None = None


class Transformer(nn.Module):
    """Embedding, `num_layers` blocks, a final norm and the output projection (the embedding itself when tied).

    `trainer.model.build.build_model` gives it its initial weights.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.blocks = nn.ModuleList(
            Block(config, kind=kind, attention=attention)
            for kind, attention in zip(config.layer_kinds(), config.layer_attentions(), strict=True)
        )
        self.final_norm = RMSNorm(config.dim, eps=config.norm_eps)
        self.head = None if config.tie_embeddings else nn.Linear(config.dim, config.vocab_size, bias=False)

    def forward(
        self, tokens_BL: Tensor, targets_BL: Tensor | None = None, documents_BL: Tensor | None = None
    ) -> ModelOutput:
        """Returns the logits, or the loss if there are targets, and the routings.

        Training passes the targets: the loss then comes without logits, in half the time and in a fraction of their
        memory (`trainer.model.cross_entropy`). Both are int64 in [0, vocab_size). `documents_BL` as for `trunk`.
        """
        hidden_BLD, routings = self.trunk(tokens_BL, documents_BL)
        if targets_BL is None:
            return ModelOutput(self.logits(hidden_BLD), routings)
        loss = linear_cross_entropy(
            hidden_BLD.flatten(0, 1), self.head_weight, targets_BL.flatten(), scale=self.config.scales.logits
        )
        return ModelOutput(None, routings, loss)

    def trunk(self, tokens_BL: Tensor, documents_BL: Tensor | None = None) -> tuple[Tensor, tuple[LayerRouting, ...]]:
        """Returns the normalised hidden states before the output projection, and the routings.

        `documents_BL` numbers the document of each position within its sequence, never falling: no position then sees
        an earlier document. Without it a sequence is one document.
        """
        documents = None if documents_BL is None else Documents(documents_BL)
        x_BLD = self._embedded(tokens_BL)
        routings: list[LayerRouting] = []
        for layer, block in enumerate(self.blocks):
            x_BLD, routing = block(x_BLD, tokens_BL, documents)
            if routing is not None:
                routings.append(LayerRouting.of(routing, layer=layer, num_sequences=len(tokens_BL)))
        return self.final_norm(x_BLD), tuple(routings)

    def decode(self, tokens_B: Tensor, pasts: tuple[Past, ...] | None) -> tuple[Tensor, tuple[Past, ...]]:
        """Returns logits_BV after one more token of each sequence, and the pasts of all layers for the next token.

        Equal to the last logits of `forward` over the whole sequences, in evaluation mode and where a token's routing
        does not depend on the others of its batch. `pasts` is what the token before returned; None at the first.
        """
        x_BD = self._embedded(tokens_B)
        after: list[Past] = []
        for layer, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            x_BD, past = block.decode(x_BD, tokens_B, None if pasts is None else pasts[layer])
            after.append(past)
        return self.logits(self.final_norm(x_BD)), tuple(after)

    def _embedded(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        return x if self.config.scales.embedding == 1.0 else x * self.config.scales.embedding

    def logits(self, hidden_BLD: Tensor) -> Tensor:
        """Returns float32 logits_BLV of what `trunk` returned (float64 for a float64 model)."""
        logits_BLV = F.linear(hidden_BLD, self.head_weight).to(self.head_weight.dtype)
        return logits_BLV if self.config.scales.logits == 1.0 else logits_BLV * self.config.scales.logits

    @property
    def head_weight(self) -> Tensor:
        """The output projection, (vocab_size, dim): the embedding when tied."""
        return self.embedding.weight if self.head is None else self.head.weight

    def moe_layers(self) -> tuple[MoELayer, ...]:
        """Returns the mixture-of-experts layers, first to last: the order of `ModelOutput.routings`."""
        return tuple(module for module in self.modules() if isinstance(module, MoELayer))
