"""What a router has to be.

Letters: T tokens, D model dim, E experts.
"""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import Routing
from trainer.config.routers import LearnedRouterSection, RouterConfig


class Router(nn.Module, ABC):
    """Sends each token to experts. Its weights and its logits are float32, also under autocast.

    Every parameter of a router, however it is named, belongs to the optimizer's `router` group. What is random draws
    from torch's global generators, which checkpoints keep, and in training only: evaluating more often must not
    change a run.
    """

    @abstractmethod
    def __init__(self, config: RouterConfig, *, dim: int, num_experts: int, top_k: int) -> None:
        """Builds the router of one layer; the last of its `num_experts` outputs may be null experts, chosen alike."""
        super().__init__()

    @abstractmethod
    def forward(
        self,
        x_TD: Tensor,
        selection_bias_E: Tensor | None,
        tokens_T: Tensor | None = None,
        *,
        num_sequences: int = 1,
    ) -> Routing:
        """Returns the routing of `x_TD`.

        Args:
            x_TD: the tokens' normalised hidden states.
            selection_bias_E: float32; shifts the choice, never the weights.
            tokens_T: int64, the tokens of the vocabulary; needed by routers that choose by them.
            num_sequences: of equal length, that the tokens come from, one after the other; for routers that choose
                among the tokens of a sequence.
        """


class LinearRouter(Router):
    """A router with a weight per expert and feature, and a bias if asked for; subclasses say how the logits choose."""

    def __init__(self, config: LearnedRouterSection, *, dim: int, num_experts: int, top_k: int) -> None:
        nn.Module.__init__(self)
        self.scoring = config
        self.top_k = top_k
        self.weight = nn.Parameter(torch.empty(num_experts, dim))
        self.bias = nn.Parameter(torch.empty(num_experts)) if config.bias else None

    def logits(self, x_TD: Tensor) -> Tensor:
        """Returns float32 logits_TE, in training of tokens with `input_jitter` and with `logit_noise`.

        Source: float32 and jitter: Fedus et al. 2021, arXiv:2101.03961, section 2.4 and appendix C; noise: Riquelme et
        al. 2021, arXiv:2106.05974, section 2.
        """
        with torch.autocast(x_TD.device.type, enabled=False):
            x_TD = x_TD.to(self.weight.dtype)
            if self.training and self.scoring.input_jitter:
                jitter = self.scoring.input_jitter
                x_TD = x_TD * torch.empty_like(x_TD).uniform_(1.0 - jitter, 1.0 + jitter)
            logits_TE = F.linear(x_TD, self.weight, self.bias)
            if self.training and self.scoring.logit_noise:
                logits_TE = logits_TE + torch.randn_like(logits_TE) * (self.scoring.logit_noise / logits_TE.shape[1])
            return logits_TE

    def scores(self, logits_TE: Tensor) -> Tensor:
        """Returns the scores of the logits, without a gradient."""
        logits_TE = logits_TE.detach()
        return logits_TE.softmax(dim=-1) if self.scoring.score == "softmax" else logits_TE.sigmoid()
