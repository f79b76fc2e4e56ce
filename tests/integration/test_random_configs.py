"""What every config promises, of random ones: components are tested one by one elsewhere, here they meet.

Sizes in closed form, telemetry within the bounds that the catalogue declares, exact resume, steps that do not depend on
how they are split, and no knowledge of later tokens.
"""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.support.models import CPU, META, random_tokens, tiny_model
from tests.support.random_configs import (
    BATCH_SIZE,
    NUM_STEPS,
    all_options,
    options_of,
    random_config,
)
from tests.support.training import Finished, exact_columns, run_training
from trainer.balancing.build import build_balancers
from trainer.config import TrainConfig
from trainer.config.model import MoEConfig
from trainer.config.parameters import ParameterShape, model_parameters
from trainer.config.precision import QuantizedExpertsSection
from trainer.config.routers import LearnedRouterSection
from trainer.data.shards import default_cache_dir
from trainer.metrics.catalog import METRICS, QUANTIZATION_SCALARS, ROUTER_SCALARS, SCALARS
from trainer.model.build import build_model, parameter_roles
from trainer.model.optimizer_size import optimizer_values
from trainer.model.size import model_size
from trainer.optimizers.build import build_optimizer
from trainer.precision.build import build_precision
from trainer.schedules.build import build_schedule
from trainer.start.freezing import freeze
from trainer.step import TrainStep
from trainer.telemetry.step_buffer import StepBuffer, StepRows
from trainer.training_data import open_data
from trainer.update import Update
from trainer.world import World

NUM_SIZED, NUM_TRAINED, NUM_SPLIT, NUM_CAUSAL = 60, 16, 12, 30
"""Configs per claim: together about half a minute. Before a release, run several hundred of each."""

UNREACHABLE = {"ExpertChoiceRouterConfig.normalize=True"}
"""Options that no valid config has."""


def test_generator_comes_to_every_kind_flag_and_choice() -> None:
    found = set().union(*(options_of(random_config(seed)) for seed in range(700)))
    assert found == all_options() - UNREACHABLE


@pytest.mark.parametrize("seed", range(NUM_SIZED))
def test_config_survives_json(seed: int) -> None:
    config = random_config(seed)
    again = TrainConfig.model_validate_json(config.model_dump_json())
    assert again == config
    assert again.fingerprint() == config.fingerprint()


@pytest.mark.parametrize("seed", range(NUM_SIZED))
def test_sizes_in_closed_form_are_those_of_the_built_model(seed: int) -> None:
    config = random_config(seed)
    model = build_model(config.model, seed=0, device=META)
    roles = parameter_roles(model)
    built = {name: ParameterShape(roles[name], tuple(each.shape)) for name, each in model.named_parameters()}
    assert model_parameters(config.model) == built
    size = model_size(config.model)
    assert size.total == sum(parameter.numel() for parameter in model.parameters())
    assert size.active == size.total - num_unchosen(config)
    tables = {name for name, role in roles.items() if role == "embedding"}
    num_tables = sum(math.prod(built[name].shape) for name in tables)
    assert size.non_embedding_total == size.total - num_tables


def num_unchosen(config: TrainConfig) -> int:
    """Returns the parameters of routed experts that an average token does not pass through, by the built experts."""
    moe = config.model.moe
    unchosen = 0
    for layer in build_model(config.model, seed=0, device=META).moe_layers():
        assert moe is not None
        per_expert = sum(parameter.numel() for parameter in layer.experts.parameters()) // moe.num_experts
        unchosen += per_expert * moe.num_experts - round(moe.router.experts_per_token(moe.top_k) * per_expert)
    return unchosen


@pytest.mark.parametrize("seed", range(NUM_TRAINED))
def test_run_is_recorded_within_bounds_and_resumed_exactly(seed: int, tmp_path: Path) -> None:
    config = random_config(seed)
    whole = run_training(config, tmp_path / "whole")
    assert whole.last.kind == "finished", whole.last
    assert_recorded(whole, config)
    kept = sum(
        value.numel() for name, value in whole.optimizer().items() if value.dim() and not name.startswith("update.")
    )
    assert kept == optimizer_values(config.optimizer, config.model, config.trained)
    stopped = run_training(config, tmp_path / "run", stop_at_tokens=2 * config.step_tokens)
    assert stopped.last.checkpoint is not None, stopped.last
    resumed = run_training(config, tmp_path / "run", resume_from=stopped.last.checkpoint.folder)
    assert resumed.last.kind == "finished", resumed.last
    assert_equal(resumed.weights(), whole.weights())
    assert_equal(resumed.optimizer(), whole.optimizer())
    assert resumed.last.evaluation == whole.last.evaluation
    timed = {"tokens_per_s", "training_duration_s"}
    assert resumed.last.summary is not None
    assert whole.last.summary is not None
    assert resumed.last.summary.model_dump(exclude=timed) == whole.last.summary.model_dump(exclude=timed)
    for kind in ("scalars", "evaluations") if config.model.moe is None else ("scalars", "router", "evaluations"):
        assert exact_columns(resumed.table(kind)).equals(exact_columns(whole.table(kind))), kind


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    different = [name for name, tensor in found.items() if not torch.equal(tensor, expected[name])]
    assert not different


def assert_recorded(run: Finished, config: TrainConfig) -> None:
    """Checks that every metric has its value for every step, within the bounds of the catalogue."""
    scalars = run.table("scalars")
    assert scalars["step"].to_pylist() == list(range(1, NUM_STEPS + 1))
    for name in SCALARS:
        assert_within_bounds(name, scalars[name].to_numpy(), config.model.moe)
    evaluations = run.table("evaluations").to_pylist()
    assert {row["domain"] for row in evaluations} == {*config.data.mixture, "all"}
    assert all(math.isfinite(value) for row in evaluations for value in row.values() if isinstance(value, float))
    if config.model.moe is None:
        return
    moe_layers = [layer for layer, kind in enumerate(config.model.layer_kinds()) if kind == "moe"]
    router = run.table("router")
    assert router["layer"].to_pylist() == moe_layers * NUM_STEPS
    is_narrow = isinstance(config.precision, QuantizedExpertsSection)
    for name in (*ROUTER_SCALARS, *(QUANTIZATION_SCALARS if is_narrow else ())):
        assert_within_bounds(name, router[name].to_numpy(), config.model.moe)
    assert_loads(np.array(router["router/load"].to_pylist()), config)


def assert_loads(loads_RE: NDArray[np.int64], config: TrainConfig) -> None:
    """Checks that each row accounts for every choice of the step, where all tokens have equally many."""
    moe = config.model.moe
    assert moe is not None
    assert loads_RE.shape[1] == moe.num_experts
    if moe.router.kind == "expert_choice":
        assert (loads_RE == loads_RE[:, :1]).all(), "every expert takes equally many tokens"
    elif moe.num_null_experts:
        assert (loads_RE.sum(axis=1) <= config.step_tokens * moe.top_k).all()
    else:
        assert (loads_RE.sum(axis=1) == config.step_tokens * moe.top_k).all()


def assert_within_bounds(name: str, values: NDArray[np.float64], moe: MoEConfig | None) -> None:
    """Checks finite values between the bounds that the catalogue declares, but for float32 rounding."""
    assert np.isfinite(values).all(), f"{name}: {values}"
    spec = METRICS[name]
    if spec.lower is not None:
        lower = bound(spec.lower, moe)
        assert values.min() >= lower - 1e-5 * max(1.0, abs(lower)), f"{name}: {values} below {spec.lower}, {lower}"
    if spec.upper is not None:
        upper = bound(spec.upper, moe)
        assert values.max() <= upper + 1e-5 * max(1.0, abs(upper)), f"{name}: {values} above {spec.upper}, {upper}"


def bound(declared: str, moe: MoEConfig | None) -> float:
    """Returns the value of a bound of the catalogue; a formula that is new there has to be added here."""
    num_experts, top_k, num_null = (2, 1, 0) if moe is None else (moe.num_experts, moe.top_k, moe.num_null_experts)
    fewest = max(top_k - num_null, 1)  # real experts of a token that has any
    formulas = {
        "0": 0.0,
        "1": 1.0,
        "ln(num_experts + num_null_experts)": math.log(num_experts + num_null),
        "ln(num_experts)": math.log(num_experts),
        "ln(max(top_k - num_null_experts, 1))": math.log(fewest),
        "num_experts / max(top_k - num_null_experts, 1)": num_experts / fewest,
        "num_experts / max(top_k - num_null_experts, 1) - 1": num_experts / fewest - 1,
        "sqrt(num_experts / max(top_k - num_null_experts, 1) - 1)": math.sqrt(num_experts / fewest - 1),
        "1 / max(top_k - num_null_experts, 1)": 1 / fewest,
        "1 - max(top_k - num_null_experts, 0) / num_experts": 1 - max(top_k - num_null, 0) / num_experts,
        "ln(num_experts + num_null_experts) / 2": math.log(num_experts + num_null) / 2,
        "max(top_k - num_null_experts, 1)": fewest,
        "2 - 2 max(top_k - num_null_experts, 1) / num_experts": 2 - 2 * fewest / num_experts,
        "num_experts": num_experts,
        "num_experts / 2": num_experts / 2,
    }
    return formulas[declared]


@pytest.mark.parametrize("number", range(NUM_SPLIT))
def test_step_does_not_depend_on_how_it_is_split(number: int) -> None:
    fitting = (config for config in map(random_config, itertools.count()) if adds_up(config))
    config = next(itertools.islice(fitting, number, None))
    expected, found = first_step(config, micro_batch_size=BATCH_SIZE), first_step(config, micro_batch_size=1)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if name == "micro_max_violation":
            continue  # a mean over micro-batches by definition
        # Sums of float32 numbers in another order; a spread is the small difference of two of them.
        tolerance = 1e-4 * tensor.abs().max().item() + (1e-3 if name.endswith("_std") else 1e-7)
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=tolerance, msg=lambda text, n=name: f"{n}: {text}")


def adds_up(config: TrainConfig) -> bool:
    """Whether nothing in the config is defined over a micro-batch, or draws random numbers for each."""
    if config.precision.kind != "fp32":
        return False
    moe = config.model.moe
    if moe is None:
        return True
    router = moe.router
    if moe.capacity is not None or router.kind == "random":
        return False
    if router.looks_ahead and getattr(router, "scope", "micro_batch") == "micro_batch":
        return False
    if isinstance(router, LearnedRouterSection) and (router.input_jitter or router.logit_noise):
        return False
    return all(getattr(balancer, "scope", "global_batch") == "global_batch" for balancer in moe.balancing)


def first_step(config: TrainConfig, *, micro_batch_size: int) -> dict[str, Tensor]:
    """Returns what the first step of a run leaves: clipped gradients, selection biases, the sums of the telemetry."""
    loop = config.loop.model_copy(update={"micro_batch_size": micro_batch_size})
    config = config.model_copy(update={"loop": loop})
    world = World()
    model = build_model(config.model, seed=config.seed, device=CPU)
    freeze(model, config.trained)
    optimizer = build_optimizer(config.optimizer, model)
    precision = build_precision(config.precision, CPU)
    precision.apply_to(model)
    moe = config.model.moe
    buffer = StepBuffer(
        log_every_steps=1,
        num_layers=config.model.layer_kinds().count("moe"),
        num_experts=0 if moe is None else moe.num_experts,
        num_null_experts=0 if moe is None else moe.num_null_experts,
        step_tokens=config.step_tokens,
        world=world,
        quantizes=isinstance(config.precision, QuantizedExpertsSection),
    )
    step = TrainStep(
        config,
        model=model,
        optimizer=optimizer,
        update=Update(config.loop, model=model, optimizer=optimizer, device=CPU),
        schedule=build_schedule(config.schedule, num_steps=NUM_STEPS),
        balancers=build_balancers(moe),
        precision=precision,
        mixture=open_data(config, cache_folder=default_cache_dir()).mixture,
        world=world,
    )
    torch.manual_seed(0)
    step(1, buffer)
    left = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    left |= {name: value for name, value in model.named_buffers() if "selection_bias" in name}
    return left | recorded(buffer.drain())


def recorded(rows: StepRows) -> dict[str, Tensor]:
    """Returns the drained values by name."""
    values = {"loss": rows.loss, "balancing_loss": rows.balancing_loss, "grad_norm": rows.grad_norm}
    if rows.router is not None:
        values |= {name: np.asarray(value) for name, value in rows.router._asdict().items()}
    return {name: torch.from_numpy(np.asarray(value, dtype=np.float64)) for name, value in values.items()}


@pytest.mark.parametrize("seed", range(NUM_CAUSAL))
@torch.no_grad()
def test_later_tokens_do_not_change_earlier_logits(seed: int) -> None:
    config = random_config(seed)
    moe = config.model.moe
    model = tiny_model(config.model, seed=1, spread=4.0).eval()
    seq_len = config.data.seq_len
    tokens_BL = random_tokens(2, seq_len, vocab_size=config.model.vocab_size, seed=seed)
    documents_BL = None
    if config.data.document_masking:
        documents_BL = torch.arange(seq_len).div(5, rounding_mode="floor").expand(2, -1)
    logits_BLV = model(tokens_BL, None, documents_BL).logits_BLV
    num_kept = seq_len // 2 + 1
    changed_BL = tokens_BL.clone()
    changed_BL[:, num_kept:] = (changed_BL[:, num_kept:] + 511) % config.model.vocab_size
    difference_BLV = (model(changed_BL, None, documents_BL).logits_BLV - logits_BLV).abs()
    assert difference_BLV[:, num_kept:].max() > 1e-3
    if moe is None or not moe.router.evaluates_ahead:
        assert difference_BLV[:, :num_kept].max() < 1e-5 * logits_BLV.abs().max().clamp(min=1.0)


@pytest.mark.parametrize("seed", range(NUM_CAUSAL))
@torch.no_grad()
def test_decoding_gives_the_logits_of_all_positions_at_once(seed: int) -> None:
    """In float64: in float32 a hundredth of the logits differ by more than 1e-4, by the order of sums alone."""
    config = random_config(seed).model
    if config.moe is not None and (config.moe.router.evaluates_ahead or config.moe.router.kind == "random"):
        return
    model = tiny_model(config, seed=1, spread=4.0).eval().double()
    tokens_BL = random_tokens(2, 12, vocab_size=config.vocab_size, seed=seed)
    logits_BLV = model(tokens_BL).logits_BLV
    pasts = None
    for position, tokens_B in enumerate(tokens_BL.unbind(dim=1)):
        decoded_BV, pasts = model.decode(tokens_B, pasts)
        torch.testing.assert_close(decoded_BV, logits_BLV[:, position], rtol=0, atol=1e-8)
