"""The device buffer adds up what the layers report, exactly, and never waits for the device before a drain."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kernels import admit, route
from trainer.model.routing import LayerRouting
from trainer.telemetry.step_buffer import MAX_BUFFER_BYTES, StepBuffer
from trainer.world import World

NUM_LAYERS, NUM_EXPERTS, TOP_K, NUM_TOKENS = 2, 8, 2, 64


def buffer(*, log_every_steps: int = 4) -> StepBuffer:
    return StepBuffer(
        log_every_steps=log_every_steps,
        num_layers=NUM_LAYERS,
        num_experts=NUM_EXPERTS,
        step_tokens=2 * NUM_TOKENS,
        world=World(),
    )


def routings(seed: int) -> list[LayerRouting]:
    generator = torch.Generator().manual_seed(seed)
    logits = [torch.randn(NUM_TOKENS, NUM_EXPERTS, generator=generator) for _ in range(NUM_LAYERS)]
    return [
        LayerRouting.of(route(logits_TE, top_k=TOP_K, normalize=True), layer=layer)
        for layer, logits_TE in enumerate(logits)
    ]


def add_step(filled: StepBuffer, *, seed: int) -> list[list[LayerRouting]]:
    micro_batches = [routings(2 * seed), routings(2 * seed + 1)]
    filled.begin_step()
    for number, micro_batch in enumerate(micro_batches):
        filled.add_micro_batch(
            loss=torch.tensor(3.0 + seed + number),
            balancing_loss=torch.tensor(0.5),
            routings=micro_batch,
            share=0.5,
        )
    filled.reduce_step()
    filled.finish_step(grad_norm=torch.tensor(7.0 + seed), selection_bias_LE=None)
    return micro_batches


def test_step_is_the_sum_of_its_micro_batches():
    filled = buffer()
    steps = [add_step(filled, seed=seed) for seed in (0, 1)]
    rows = filled.drain()
    assert rows.loss.tolist() == [3.5, 4.5]
    assert rows.balancing_loss.tolist() == [0.5, 0.5]
    assert rows.grad_norm.tolist() == [7.0, 8.0]
    assert rows.router is not None
    for step, micro_batches in enumerate(steps):
        for layer in range(NUM_LAYERS):
            first, second = (micro_batch[layer] for micro_batch in micro_batches)
            assert rows.router.counts_E[step, layer].tolist() == (first.counts_E + second.counts_E).tolist()
            both = first.stats.combine(second.stats)
            for slot, found in (
                ("token_entropy_sum", rows.router.entropy_sum),
                ("logsumexp_sq_sum", rows.router.z_sum),
                ("top_k_mass_sum", rows.router.top_k_mass_sum),
                ("margin_sum", rows.router.margin_sum),
                ("logit_max", rows.router.max_logit),
                ("negated_logit_max", rows.router.negated_min_logit),
            ):
                np.testing.assert_allclose(found[step, layer], both.slot(slot).item(), rtol=1e-6)
            np.testing.assert_allclose(rows.router.prob_sum_E[step, layer], both.prob_sum_E.numpy(), rtol=1e-6)


def test_counts_for_the_balancers_are_those_of_the_whole_step():
    filled = buffer()
    filled.begin_step()
    for seed in (0, 1):
        filled.add_micro_batch(loss=torch.tensor(1.0), balancing_loss=None, routings=routings(seed), share=0.5)
    counts_LE = filled.reduce_step()
    expected = sum(torch.stack([routing.counts_E for routing in routings(seed)]) for seed in (0, 1))
    assert counts_LE.dtype == torch.float32
    assert torch.equal(counts_LE, expected.float())
    assert counts_LE.sum() == 2 * NUM_LAYERS * NUM_TOKENS * TOP_K


def test_bias_range_is_the_widest_difference_of_a_layer():
    filled = buffer()
    filled.begin_step()
    filled.add_micro_batch(loss=torch.tensor(1.0), balancing_loss=None, routings=routings(0), share=1.0)
    bias_LE = torch.zeros(NUM_LAYERS, NUM_EXPERTS)
    bias_LE[1, 0], bias_LE[1, 3] = -0.25, 0.5
    filled.finish_step(grad_norm=torch.tensor(1.0), selection_bias_LE=bias_LE)
    router = filled.drain().router
    assert router is not None
    assert router.bias_range.tolist() == [[0.0, 0.75]]


def test_buffer_is_empty_after_a_drain_and_earlier_steps_do_not_leak():
    filled = buffer(log_every_steps=2)
    for seed in (0, 1):
        add_step(filled, seed=seed)
    filled.drain()
    assert filled.num_rows == 0
    add_step(filled, seed=1)
    again, fresh = filled.drain(), buffer()
    add_step(fresh, seed=1)
    once = fresh.drain()
    assert again.loss.tolist() == once.loss.tolist()
    assert again.router is not None
    assert once.router is not None
    assert again.router.counts_E.tolist() == once.router.counts_E.tolist()
    assert again.router.max_logit.tolist() == once.router.max_logit.tolist()


@pytest.mark.parametrize("log_every_steps", [1, 10, 1_000_000])
def test_buffer_never_takes_more_than_its_bound(log_every_steps: int):
    sized = buffer(log_every_steps=log_every_steps)
    assert 1 <= sized.capacity <= log_every_steps
    assert sized._rows_SW.numel() * 8 <= MAX_BUFFER_BYTES


class _NoHostRead(TorchDispatchMode):
    """Fails where a value is read on the host, which on a GPU would wait for everything queued before it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.item.default,
            torch.ops.aten.nonzero.default,
        ), f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


def test_no_value_is_read_on_the_host_before_a_drain():
    filled = buffer()
    with _NoHostRead():
        for seed in range(3):
            add_step(filled, seed=seed)


def test_what_is_not_computed_is_summed_and_demand_stays_what_was_asked_for():
    num_null = 3
    filled = StepBuffer(
        log_every_steps=2,
        num_layers=NUM_LAYERS,
        num_experts=NUM_EXPERTS,
        num_null_experts=num_null,
        step_tokens=2 * NUM_TOKENS,
        world=World(),
    )
    generator = torch.Generator().manual_seed(0)
    whole = [
        [
            route(torch.randn(NUM_TOKENS, NUM_EXPERTS + num_null, generator=generator), top_k=TOP_K, normalize=True)
            for _ in range(NUM_LAYERS)
        ]
        for _ in range(2)
    ]
    filled.begin_step()
    for micro_batch in whole:
        partial = [admit(routing, num_null_experts=num_null, capacity=9) for routing in micro_batch]
        filled.add_micro_batch(
            loss=torch.tensor(3.0),
            balancing_loss=None,
            routings=[LayerRouting.of(routing, layer=layer) for layer, routing in enumerate(partial)],
            share=0.5,
        )
    counts_LE = filled.reduce_step()
    filled.finish_step(grad_norm=torch.tensor(1.0), selection_bias_LE=torch.zeros(NUM_LAYERS, NUM_EXPERTS + num_null))
    router = filled.drain().router
    assert router is not None
    for layer in range(NUM_LAYERS):
        both = [micro_batch[layer] for micro_batch in whole]
        demand_E = sum(routing.counts_E[:NUM_EXPERTS] for routing in both)
        computed = sum(routing.counts_E[:NUM_EXPERTS].clamp(max=9).sum() for routing in both)
        assert router.counts_E[0, layer].tolist() == counts_LE[layer].tolist() == demand_E.tolist()
        assert router.num_dropped[0, layer] == demand_E.sum() - computed > 0
        assert router.num_null[0, layer] == sum(routing.counts_E[NUM_EXPERTS:].sum() for routing in both) > 0
        assert router.num_uncovered[0, layer] > 0
        probs_E = sum(routing.prob_sum_E for routing in both)
        np.testing.assert_allclose(router.prob_sum_E[0, layer], probs_E, rtol=1e-6)
        z_sum = sum(routing.z_sum for routing in both)
        np.testing.assert_allclose(router.z_sum[0, layer], z_sum, rtol=1e-6)


def test_dropless_steps_drop_nothing():
    filled = buffer()
    add_step(filled, seed=0)
    router = filled.drain().router
    assert router is not None
    assert not router.num_dropped.any()
    assert not router.num_null.any()
    assert not router.num_uncovered.any()


def test_casts_are_summed_over_the_step_and_apart_from_the_routing():
    filled = StepBuffer(
        log_every_steps=2,
        num_layers=NUM_LAYERS,
        num_experts=NUM_EXPERTS,
        step_tokens=2 * NUM_TOKENS,
        world=World(),
        quantizes=True,
    )
    counts_LOC = torch.arange(NUM_LAYERS * 9).view(NUM_LAYERS, 3, 3)
    for seed in (0, 1):
        micro_batches = [routings(2 * seed), routings(2 * seed + 1)]
        filled.begin_step()
        for micro_batch in micro_batches:
            filled.add_micro_batch(loss=torch.tensor(1.0), balancing_loss=None, routings=micro_batch, share=0.5)
            filled.add_casts(counts_LOC * (seed + 1))
        filled.reduce_step()
        filled.finish_step(grad_norm=torch.tensor(7.0), selection_bias_LE=None)
    plain = buffer(log_every_steps=2)
    for seed in (0, 1):
        add_step(plain, seed=seed)
    rows, expected = filled.drain(), plain.drain()
    assert rows.casts is not None
    assert rows.casts.tolist() == [(2 * counts_LOC).tolist(), (4 * counts_LOC).tolist()]
    assert expected.casts is None
    assert rows.grad_norm.tolist() == [7.0, 7.0]
    assert rows.router is not None
    assert expected.router is not None
    for got, want in zip(rows.router, expected.router, strict=True):
        np.testing.assert_array_equal(got, want)
