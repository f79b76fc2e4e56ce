"""Models out of balance, and the gradients of a step that is to be balanced."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from tests.support.models import model_config, moe_fields, tiny_model
from trainer.balancing.build import build_balancers
from trainer.balancing.step_balancing import StepBalancing
from trainer.model.routing import LayerRouting
from trainer.model.transformer import Transformer
from trainer.world import World


def model_with_hot_expert(*balancing: dict[str, object], **moe: object) -> Transformer:
    """Returns a one-layer model of 8 experts, 2 per token, whose router sends every token to expert 3."""
    config = model_config(
        num_layers=1, moe=moe_fields(num_experts=8, top_k=2, balancing=balancing, **moe), norm_eps=1e-5
    )
    model = tiny_model(config, spread=20.0)
    with torch.no_grad():
        # One direction all normalised inputs share, so that a row of the router works like a bias on its expert.
        model.embedding.weight[:, 0] = 4.0
        model.blocks[0].attention.out.weight.zero_()
        (layer,) = model.moe_layers()
        layer.router.weight[3, 0] += 1.5
    return model


def share_of(model: Transformer, tokens_BL: Tensor, expert: int) -> float:
    """Returns the load of one expert of the first layer over the mean load."""
    counts_E = model(tokens_BL).routings[0].counts_E.float()
    return (counts_E[expert] / counts_E.mean()).item()


def gradients_of_step(model: Transformer, micro_batches: Sequence[Tensor]) -> dict[str, Tensor]:
    """Returns the gradients of one step: loss and balancing losses of each micro-batch over their number."""
    balancing = StepBalancing(build_balancers(model.config.moe), model=model, world=World())
    model.zero_grad()
    balancing.begin([partial(_routings, model, tokens_BL[:, :-1]) for tokens_BL in micro_batches])
    for tokens_BL in micro_batches:
        output = model(tokens_BL[:, :-1], tokens_BL[:, 1:])
        balancing_loss = balancing.loss(output.routings)
        total = output.loss if balancing_loss is None else output.loss + balancing_loss
        (total / len(micro_batches)).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def balance(model: Transformer, micro_batches: Sequence[Tensor]) -> None:
    """Lets the methods act as after a step of these micro-batches whose weights did not change."""
    balancing = StepBalancing(build_balancers(model.config.moe), model=model, world=World())
    balancing.begin([partial(_routings, model, tokens_BL) for tokens_BL in micro_batches])
    counts = []
    with torch.no_grad():
        for tokens_BL in micro_batches:
            routings = model(tokens_BL).routings
            balancing.loss(routings)
            counts.append(torch.stack([routing.counts_E for routing in routings]))
    balancing.end(torch.stack(counts).sum(dim=0).float())


def _routings(model: Transformer, tokens_BL: Tensor) -> Sequence[LayerRouting]:
    return model.trunk(tokens_BL)[1]
