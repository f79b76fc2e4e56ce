"""Held-out evaluation: bits per byte and nats per token of each corpus of the mixture, and their mean.

Letters: B sequences, L positions.
"""

from collections.abc import Mapping, Sequence

import torch

from trainer.config.run import DomainEvaluation
from trainer.data.evaluation import EvaluationSet
from trainer.model.transformer import Transformer
from trainer.precision.base import Precision
from trainer.world import World

ALL = "all"
"""Name of the mean over corpora."""


@torch.no_grad()
def evaluate(
    model: Transformer, sets: Sequence[EvaluationSet], *, batch_size: int, precision: Precision, world: World
) -> dict[str, DomainEvaluation]:
    """Return corpus -> figures, in the order of `sets`, and under `all` the mean over corpora, each counting alike.

    Documents are kept apart where the sets say which position belongs to which. The workers share the batches. Losses
    are added up in float64. The model is left in training mode.

    Args:
        model: the bare model.
        sets: windows and exact byte counts, one per corpus.
        batch_size: sequences per forward pass.
        precision: of the forward pass.
        world: this worker among the others.
    """
    model.eval()
    nats = torch.zeros(len(sets), dtype=torch.float64, device=world.device)
    for index, held_out in enumerate(sets):
        for number, first in enumerate(range(0, len(held_out.inputs_NL), batch_size)):
            if number % world.world_size != world.rank:
                continue
            taken = slice(first, first + batch_size)
            inputs_BL = torch.from_numpy(held_out.inputs_NL[taken]).to(world.device)
            targets_BL = torch.from_numpy(held_out.targets_NL[taken]).to(world.device)
            documents_NL = held_out.documents_NL
            documents_BL = None if documents_NL is None else torch.from_numpy(documents_NL[taken]).to(world.device)
            with precision.autocast():
                mean_nats = model(inputs_BL, targets_BL, documents_BL).loss
            assert mean_nats is not None
            nats[index] += mean_nats.double() * targets_BL.numel()
    model.train()
    total_nats = world.all_reduce_sum(nats).tolist()
    figures = {
        held_out.domain: DomainEvaluation(bits_per_byte=held_out.bits_per_byte(total), loss=total / held_out.num_tokens)
        for held_out, total in zip(sets, total_nats, strict=True)
    }
    return {**figures, ALL: _mean(figures)}


def _mean(figures: Mapping[str, DomainEvaluation]) -> DomainEvaluation:
    return DomainEvaluation(
        bits_per_byte=sum(each.bits_per_byte for each in figures.values()) / len(figures),
        loss=sum(each.loss for each in figures.values()) / len(figures),
    )
