"""Every router metric of a real layer equals what is computed token by token from the full probabilities, in float64.

The telemetry takes them from sums that come out of the routing pass, over micro-batches; here nothing is summed early.
"""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from kernels import Backend, route
from tests.support.models import model_config, moe_fields, tiny_model
from trainer.metrics.router_health import router_health
from trainer.model.routing import LayerRouting
from trainer.telemetry.step_buffer import StepBuffer
from trainer.world import World

NUM_EXPERTS, TOP_K, NUM_MICRO_BATCHES = 8, 2, 3


@pytest.fixture(scope="module", params=["softmax", "sigmoid"])
def measured(request: pytest.FixtureRequest) -> tuple[dict[str, np.ndarray], list[list[tuple[Tensor, Tensor, Tensor]]]]:
    """The metrics of one step by the telemetry, and logits, distribution and choice of each micro-batch and layer."""
    router = {"kind": "top_k", "score": request.param}
    model = tiny_model(
        model_config(moe=moe_fields(num_experts=NUM_EXPERTS, top_k=TOP_K, router=router), num_layers=2), spread=8.0
    )
    generator = torch.Generator().manual_seed(0)
    batches = torch.randint(0, model.config.vocab_size, (NUM_MICRO_BATCHES, 4, 16), generator=generator)
    buffer = StepBuffer(
        log_every_steps=1, num_layers=2, num_experts=NUM_EXPERTS, step_tokens=batches.numel(), world=World()
    )
    buffer.begin_step()
    seen = []
    for tokens_BL in batches:
        routings = model(tokens_BL).routings
        buffer.add_micro_batch(
            loss=torch.tensor(1.0), balancing_loss=None, routings=routings, share=1 / NUM_MICRO_BATCHES
        )
        seen.append([])
        for routing in routings:
            logits = routing.logits_TE.detach().double()
            scores = logits.softmax(dim=1) if request.param == "softmax" else logits.sigmoid()
            seen[-1].append((logits, scores / scores.sum(dim=1, keepdim=True), routing.expert_ids_N.view(-1, TOP_K)))
    buffer.reduce_step()
    buffer.finish_step(grad_norm=torch.tensor(1.0), selection_bias_LE=None)
    sums = buffer.drain().router
    assert sums is not None
    return {name: values[0] for name, values in router_health(sums).items()}, seen


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("spread", [1e-4, 1e-3, 1e-1])
def test_spread_of_nearly_equal_entropies_is_measured(backend: Backend, spread: float):
    """Tokens whose entropies differ in the fifth digit or later: of float32 sums the difference would be rounding."""
    num_tokens, num_parts = 4096, 4
    generator = torch.Generator().manual_seed(0)
    typical_E = torch.randn(16, generator=generator)
    logits_TE = typical_E + spread * torch.randn(num_tokens, 16, generator=generator)
    buffer = StepBuffer(log_every_steps=1, num_layers=1, num_experts=16, step_tokens=num_tokens, world=World())
    buffer.begin_step()
    for part_TE in logits_TE.chunk(num_parts):
        routing = LayerRouting.of(route(part_TE, top_k=2, normalize=True, backend=backend), layer=0)
        buffer.add_micro_batch(loss=torch.tensor(1.0), balancing_loss=None, routings=[routing], share=1 / num_parts)
    buffer.reduce_step()
    buffer.finish_step(grad_norm=torch.tensor(1.0), selection_bias_LE=None)
    sums = buffer.drain().router
    assert sums is not None
    expected = np.std([entropy(row) for row in logits_TE.double().softmax(dim=1)])
    assert expected < spread, "the case must be one of nearly equal entropies"
    # A token's own entropy comes from float32 logits and logarithms: 2e-7 of noise beside the spread.
    np.testing.assert_allclose(router_health(sums)["router/token_entropy_std"][0, 0], expected, rtol=1e-3, atol=1e-7)


def entropy(fractions: Tensor) -> float:
    return -sum(f * math.log(f) for f in fractions.tolist() if f > 0)


@pytest.mark.parametrize("layer", [0, 1])
def test_metrics_equal_the_obvious_computation(measured, layer: int):
    found, seen = measured
    logits = torch.cat([batch[layer][0] for batch in seen])
    probs = torch.cat([batch[layer][1] for batch in seen])
    chosen = torch.cat([batch[layer][2] for batch in seen])
    tokens = range(len(logits))
    scores = logits.softmax(dim=1) if torch.allclose(logits.softmax(dim=1), probs) else logits.sigmoid()
    entropies = [entropy(probs[token]) for token in tokens]
    loads = [sum(expert in chosen[token].tolist() for token in tokens) for expert in range(NUM_EXPERTS)]
    mean_load = sum(loads) / NUM_EXPERTS
    load_entropy = entropy(torch.tensor(loads, dtype=torch.float64) / sum(loads))
    importance = entropy(torch.stack([probs[token] for token in tokens]).sum(dim=0) / len(tokens))
    falling = [sorted(scores[token].tolist(), reverse=True) for token in tokens]
    logsumexps = [math.log(sum(math.exp(z) for z in logits[token].tolist())) for token in tokens]
    micro = []
    for batch in seen:
        counts = torch.bincount(batch[layer][2].flatten(), minlength=NUM_EXPERTS).double()
        micro.append((counts.max() / counts.mean() - 1).item())
    expected = {
        "router/token_entropy": np.mean(entropies),
        "router/token_entropy_std": np.std(entropies),
        "router/load_entropy": load_entropy,
        "router/effective_experts": math.exp(load_entropy),
        "router/importance_entropy": importance,
        "router/mutual_information": importance - np.mean(entropies),
        "router/max_violation": max(loads) / mean_load - 1,
        "router/micro_max_violation": np.mean(micro),
        "router/min_violation": 1 - min(loads) / mean_load,
        "router/average_violation": np.mean([abs(load - mean_load) for load in loads]) / mean_load,
        "router/load_cv": np.std(loads) / mean_load,
        "router/max_load": max(loads) / sum(loads),
        "router/dead_fraction": np.mean([load == 0 for load in loads]),
        "router/drop_rate": 0.0,
        "router/uncovered_rate": 0.0,
        "router/null_share": 0.0,
        "router/experts_per_token": TOP_K,
        "router/experts_per_token_std": 0.0,
        "router/z": np.mean(np.square(logsumexps)),
        "router/logsumexp": np.mean(logsumexps),
        "router/top_k_mass": np.mean(
            [sum(probs[token, expert].item() for expert in chosen[token]) for token in tokens]
        ),
        "router/margin": np.mean([each[TOP_K - 1] - each[TOP_K] for each in falling]),
        "router/max_logit": logits.max().item(),
        "router/max_abs_logit": max(abs(z) for z in logits.flatten().tolist()),
        "router/logit_rms": math.sqrt(np.mean(np.square(logits.numpy()))),
        "router/bias_range": 0.0,
        "router/mean_load": len(tokens) * TOP_K / NUM_EXPERTS,
        "router/load_balancing_loss": NUM_EXPERTS
        * sum(
            load / sum(loads) * np.mean([probs[token, expert].item() for token in tokens])
            for expert, load in enumerate(loads)
        ),
    }
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        # Sums over 192 tokens in float32.
        np.testing.assert_allclose(found[name][layer], value, rtol=2e-5, atol=2e-5, err_msg=name)
    assert micro != [max(loads) / mean_load - 1] * NUM_MICRO_BATCHES, "the case must tell a micro-batch from a step"
