"""Routers: how a token's logits over the experts become its experts and their weights."""

from typing import Literal

from pydantic import Field

from trainer.config.section import Section


class TopKRouterConfig(Section):
    """Token choice: every token takes its `top_k` best experts (dropless).

    Source: Shazeer et al. 2017, arXiv:1701.06538; sigmoid scores: DeepSeek-V3, arXiv:2412.19437, eq. 12-16.
    """

    kind: Literal["top_k"] = "top_k"
    score: Literal["softmax", "sigmoid"] = "softmax"
    normalize: bool = True
    """Divide the chosen experts' scores by their sum."""
    scale: float = Field(default=1.0, gt=0, le=100)
    """Factor on the weights after normalising (DeepSeek's routed scaling factor)."""


RouterConfig = TopKRouterConfig
"""The union of routers, discriminated by `kind` once there is more than one."""
