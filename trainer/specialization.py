"""Runs held-out windows through a model to see which domain goes to which expert.

Letters: B sequences, L positions, W windows, M MoE layers, E experts, K experts per token.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.config import TrainConfig
from trainer.data.evaluation import EvaluationSet
from trainer.metrics.specialization import domain_information, shuffled_domain_information
from trainer.model.build import build_model
from trainer.model.transformer import Transformer
from trainer.routers.looking_ahead import routed_over_chunks

TOKENS_PER_DOMAIN = 4096
"""Held-out tokens per domain; with 6 domains and 16 experts the bias of the estimate is then about 0.002 bits on
independent tokens, and what the likeness within windows adds is in the shuffled control."""


def measure_specialization(
    config: TrainConfig, model: Transformer, sets: Sequence[EvaluationSet]
) -> dict[str, list[float]] | None:
    """Return the mutual information of domain and expert per MoE layer in bits, with its controls; None if dense.

    Keys: `trained`, `untrained` (the same weights at initialisation) and `shuffled` (trained router, domain labels
    permuted). Every domain counts with equally many windows. Experts that choose among the tokens of a sequence take
    equally many of each, whatever they like; where evaluation is like that, they choose here from batches of all
    domains.
    """
    if config.model.moe is None:
        return None
    wanted = max(1, TOKENS_PER_DOMAIN // config.data.seq_len)
    num_windows = min(wanted, *(len(held_out.inputs_NL) for held_out in sets))
    windows_WL = np.concatenate([held_out.inputs_NL[:num_windows] for held_out in sets])
    documents = [held_out.documents_NL[:num_windows] for held_out in sets if held_out.documents_NL is not None]
    documents_WL = np.concatenate(documents) if documents else None
    domain_of_W = np.repeat(np.arange(len(sets)), num_windows)
    chunk_size = None
    if config.model.moe.router.evaluates_ahead:
        chunk_size = config.loop.micro_batch_size * config.data.seq_len
        in_turn_W = np.arange(len(windows_WL)).reshape(len(sets), num_windows).T.flatten()
        windows_WL, domain_of_W = windows_WL[in_turn_W], domain_of_W[in_turn_W]
        documents_WL = None if documents_WL is None else documents_WL[in_turn_W]
    device = next(model.parameters()).device
    untrained = build_model(config.model, seed=config.seed, device=device)
    batch_size = config.loop.micro_batch_size
    with routed_over_chunks(model, chunk_size), routed_over_chunks(untrained, chunk_size):
        counts_WME = _counts_per_window(model, windows_WL, documents_WL, batch_size=batch_size)
        untrained_WME = _counts_per_window(untrained, windows_WL, documents_WL, batch_size=batch_size)
    return {
        "trained": domain_information(counts_WME, domain_of_W),
        "untrained": domain_information(untrained_WME, domain_of_W),
        "shuffled": shuffled_domain_information(counts_WME, domain_of_W, seed=config.seed),
    }


@torch.no_grad()
def _counts_per_window(
    model: Transformer, windows_WL: NDArray[np.int64], documents_WL: NDArray[np.int64] | None, *, batch_size: int
) -> NDArray[np.int64]:
    """Return tokens of each window sent to each expert in each MoE layer, int64 [W, M, E]."""
    moe = model.config.moe
    assert moe is not None
    device = next(model.parameters()).device
    parts = []
    model.eval()
    for first in range(0, len(windows_WL), batch_size):
        taken = slice(first, first + batch_size)
        tokens_BL = torch.from_numpy(windows_WL[taken]).to(device)
        documents_BL = None if documents_WL is None else torch.from_numpy(documents_WL[taken]).to(device)
        _, routings = model.trunk(tokens_BL, documents_BL)
        chosen_MBLE = torch.stack([routing.assignments_TE() for routing in routings]).unflatten(1, tokens_BL.shape)
        parts.append(chosen_MBLE.sum(dim=2)[..., : moe.num_experts].transpose(0, 1).cpu())
    model.train()
    return torch.cat(parts).numpy()
