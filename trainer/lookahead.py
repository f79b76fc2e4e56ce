"""What a model owes to a router that sees later tokens: its held-out loss when the router sees fewer of them.

Letters: B sequences, L positions, N and W windows, T tokens, D model dim, M mixture-of-experts layers, E experts.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kernels import Routing
from trainer.config import TrainConfig
from trainer.config.run import LookaheadProbe, RoutedLoss
from trainer.data.evaluation import EvaluationSet
from trainer.model.transformer import Transformer
from trainer.precision.base import Precision
from trainer.routers.expert_choice import Choice, ExpertChoiceRouter
from trainer.routers.looking_ahead import routed_over_chunks

TOKENS_PER_DOMAIN = 4096
"""Held-out tokens per corpus; every chunk size is measured on the same ones."""

Batch = tuple[Tensor, Tensor, Tensor | None]
"""Inputs, targets and document numbers, each [B, L]."""


def measure_lookahead(
    config: TrainConfig,
    model: Transformer,
    sets: Sequence[EvaluationSet],
    *,
    micro_batch_size: int,
    precision: Precision,
) -> LookaheadProbe | None:
    """Return the held-out loss by the number of tokens that compete for the experts; None where none ever do.

    Whom the experts take can tell a token what comes after it. Routed over smaller chunks, the competitors of a token
    are fewer and nearer; a loss that moves with the size is one that routing has a part in, and the figures of
    training are then not those of a language model. All corpora count alike; micro-batches mix them, as in training.
    The model is left in training mode.

    A model of 4 layers of width 64, trained on 1.5M tokens with 16 experts that chose from sequences of 32, had 3.20
    nats/token routed like that, 3.33 routed over micro-batches of 1024 tokens, and 3.35 by its predictor.

    Args:
        config: of the run.
        model: the bare model, trained.
        sets: held-out windows, one set per corpus.
        micro_batch_size: sequences per forward pass in training.
        precision: of the forward pass.

    Source: Wang et al. 2024, arXiv:2408.15664, section 5.2, which trains a model for each chunk size; here one trained
    model is routed with each.
    """
    moe = config.model.moe
    if moe is None or not moe.router.looks_ahead:
        return None
    router, seq_len = moe.router, config.data.seq_len
    device = next(model.parameters()).device
    batches = _mixed_batches(sets, batch_size=micro_batch_size, device=device)
    share = router.experts_per_token(moe.top_k) / moe.num_experts
    sizes = chunk_sizes(batches[0][0].numel(), seq_len, share=share)
    by_sequence = router.kind == "expert_choice" and router.scope == "sequence"
    trained_size = seq_len if by_sequence else micro_batch_size * seq_len
    model.eval()
    probe = LookaheadProbe(
        trained_chunk_size=trained_size,
        by_chunk_size=tuple(_routed_loss(model, batches, precision, chunk_size=size) for size in sizes),
        causal=None if router.evaluates_ahead else _routed_loss(model, batches, precision, chunk_size=None),
        predictor_accuracy=_predictor_accuracy(model, batches, precision, chunk_size=trained_size),
    )
    model.train()
    return probe


def chunk_sizes(batch_tokens: int, seq_len: int, *, share: float) -> tuple[int, ...]:
    """Return how many tokens are to compete: a micro-batch, a sequence, a quarter of one, and so on.

    Args:
        batch_tokens: tokens of a micro-batch.
        seq_len: tokens of a sequence.
        share: of the tokens that an expert takes. Chunks of which it takes less than one token are left out: it would
            take one all the same, and tokens would have more experts than in training.
    """
    sizes = [batch_tokens]
    size = seq_len
    while size * share >= 1:
        if size < sizes[-1]:
            sizes.append(size)
        if size % 4:
            break
        size //= 4
    return tuple(sizes)


@torch.no_grad()
def _routed_loss(
    model: Transformer, batches: Sequence[Batch], precision: Precision, *, chunk_size: int | None
) -> RoutedLoss:
    """Return how well the model does on batches of equally many tokens when it routes over chunks."""
    nats, num_experts = [], []
    with routed_over_chunks(model, chunk_size):
        for batch in batches:
            with precision.autocast():
                output = model(*batch)
            assert output.loss is not None, "there are targets"
            nats.append(output.loss.double())
            pairs_M = torch.stack([routing.counts_E.sum() for routing in output.routings])
            num_experts.append(pairs_M.double().mean() / batch[0].numel())
    return RoutedLoss(
        chunk_size=chunk_size,
        loss=torch.stack(nats).mean().item(),
        experts_per_token=torch.stack(num_experts).mean().item(),
    )


@torch.no_grad()
def _predictor_accuracy(
    model: Transformer, batches: Sequence[Batch], precision: Precision, *, chunk_size: int
) -> list[float] | None:
    """Return per MoE layer how often a predictor is right about a token and an expert; None without predictors."""
    routers = [module for module in model.modules() if isinstance(module, ExpertChoiceRouter)]
    if not all(router.choice.predictor for router in routers) or not routers:
        return None
    right: dict[nn.Module, list[Tensor]] = {router: [] for router in routers}

    def compare(router: nn.Module, arguments: tuple[Tensor, ...], routing: Routing) -> None:
        assert isinstance(router, ExpertChoiceRouter)
        assert routing.token_ids_N is not None, "an expert-choice routing is ragged"
        x_TD = arguments[0]
        taken_TE = router.as_matrix(Choice(routing.token_ids_N, routing.expert_ids_N), num_tokens=len(x_TD))
        predicted_TE = router.as_matrix(router.predicted(x_TD), num_tokens=len(x_TD))
        right[router].append((taken_TE == predicted_TE).double().mean())

    hooks = [router.register_forward_hook(compare) for router in routers]
    try:
        with routed_over_chunks(model, chunk_size), precision.autocast():
            for inputs_BL, _, documents_BL in batches:
                model.trunk(inputs_BL, documents_BL)
    finally:
        for hook in hooks:
            hook.remove()
    return [torch.stack(right[router]).mean().item() for router in routers]


def _mixed_batches(sets: Sequence[EvaluationSet], *, batch_size: int, device: torch.device) -> list[Batch]:
    """Return whole micro-batches that take the corpora in turn; a smaller one where there are too few windows."""
    seq_len = sets[0].inputs_NL.shape[1]
    num_windows = min(max(1, TOKENS_PER_DOMAIN // seq_len), *(len(held_out.inputs_NL) for held_out in sets))

    def in_turn(rows: Sequence[NDArray[np.int64]]) -> Tensor:
        return torch.from_numpy(np.stack([each[:num_windows] for each in rows], axis=1).reshape(-1, seq_len)).to(device)

    inputs_WL = in_turn([held_out.inputs_NL for held_out in sets])
    targets_WL = in_turn([held_out.targets_NL for held_out in sets])
    documents = [held_out.documents_NL for held_out in sets if held_out.documents_NL is not None]
    documents_WL = in_turn(documents) if documents else None
    batch_size = min(batch_size, len(inputs_WL))
    return [
        (
            inputs_WL[first : first + batch_size],
            targets_WL[first : first + batch_size],
            None if documents_WL is None else documents_WL[first : first + batch_size],
        )
        for first in range(0, len(inputs_WL) - batch_size + 1, batch_size)
    ]
