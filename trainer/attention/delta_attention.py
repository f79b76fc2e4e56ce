"""What attention variants over the delta rule have in common; they differ in how decay and output gate are made.

Letters: B sequences, L positions, D model dim, H heads, d key head dim, e value head dim.
"""

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from trainer.attention.base import Attention
from trainer.attention.decay import Decay
from trainer.attention.decoding import Past
from trainer.attention.delta_rule import chunked_delta_rule, recurrent_delta_rule, unit_length
from trainer.attention.documents import Documents
from trainer.attention.short_convolution import ShortConvolution
from trainer.model.norm import RMSNorm


class DeltaRuleAttention(Attention):
    """Queries, keys and values behind a short convolution, read from and written to one memory per head."""

    residual_weights = ("out.weight",)
    chunk_size: ClassVar[int]
    """Positions that are computed at once."""

    num_heads: int
    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    query_conv: ShortConvolution
    key_conv: ShortConvolution
    value_conv: ShortConvolution
    strength: nn.Linear
    norm: RMSNorm
    out: nn.Linear

    def special_start(self, name: str, generator: torch.Generator) -> Tensor | None:
        """Returns the starts of the convolutions and of the decay."""
        owner, _, inner = name.partition(".")
        module = self.get_submodule(owner)
        if isinstance(module, Decay):
            return module.start(inner, generator)
        return module.start(generator) if isinstance(module, ShortConvolution) else None

    @abstractmethod
    def log_decay(self, x_BLD: Tensor) -> Tensor:
        """Returns log_decay_BLHd, at most 0; the last dimension may be 1, for one decay per head."""

    @abstractmethod
    def output_gate(self, x_BLD: Tensor) -> Tensor:
        """Returns the factors of the normalised result, heads and value features in one last dimension."""

    def forward(self, x_BLD: Tensor, documents: Documents | None = None) -> Tensor:
        query, key, value = (
            conv(linear(x_BLD), documents).unflatten(-1, (self.num_heads, -1))
            for conv, linear in (
                (self.query_conv, self.query),
                (self.key_conv, self.key),
                (self.value_conv, self.value),
            )
        )
        log_decay_BLHd = self.log_decay(x_BLD)
        dtype = log_decay_BLHd.dtype
        strength_BLH = self.strength(x_BLD).to(dtype).sigmoid()
        # The memory adds up over the whole sequence: float32 also under autocast.
        with torch.autocast(x_BLD.device.type, enabled=False):
            attended_BLHe, _ = chunked_delta_rule(
                unit_length(query.to(dtype)),
                unit_length(key.to(dtype)),
                value.to(dtype),
                log_decay_BLHd=log_decay_BLHd,
                strength_BLH=strength_BLH,
                chunk_size=self.chunk_size,
                documents=documents,
            )
        return self._gated(x_BLD, attended_BLHe)

    def decode(self, x_BD: Tensor, past: Past | None) -> tuple[Tensor, Past]:
        """Keeps the memory and the inputs that each convolution still sees: as much after any number of positions."""
        memory, *before = (None,) * 4 if past is None else past.kept
        convolved, seen = [], []
        for conv, linear, before_BVC in zip(
            (self.query_conv, self.key_conv, self.value_conv), (self.query, self.key, self.value), before, strict=True
        ):
            out_BC, seen_BVC = conv.decode(linear(x_BD), before_BVC)
            convolved.append(out_BC.unflatten(-1, (self.num_heads, -1)).unsqueeze(1))
            seen.append(seen_BVC)
        x_B1D = x_BD.unsqueeze(1)
        log_decay_B1Hd = self.log_decay(x_B1D)
        query, key, value = (x.to(log_decay_B1Hd.dtype) for x in convolved)
        strength_B1H = self.strength(x_B1D).to(log_decay_B1Hd.dtype).sigmoid()
        with torch.autocast(x_BD.device.type, enabled=False):
            attended_B1He, memory = recurrent_delta_rule(
                unit_length(query),
                unit_length(key),
                value,
                log_decay_BLHd=log_decay_B1Hd,
                strength_BLH=strength_B1H,
                state_BHde=memory,
            )
        out_BD = self._gated(x_B1D, attended_B1He).squeeze(1)
        return out_BD, Past(1 if past is None else past.num_positions + 1, (memory, *seen))

    def _gated(self, x_BLD: Tensor, attended_BLHe: Tensor) -> Tensor:
        gate_BLHe = self.output_gate(x_BLD).unflatten(-1, (self.num_heads, -1))
        return self.out((self.norm(attended_BLHe) * gate_BLHe).flatten(-2))
