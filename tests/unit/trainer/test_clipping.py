"""ZClip and AdaGC against their published algorithms, and how a config says which clipping it wants."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from pytorch_optimizer import AdaGC as ReferenceAdaGC
from torch import nn

from tests.support.models import CPU, dense_and_moe_configs, random_rows, tiny_model
from tests.support.training import STEP_TOKENS, run_training, train_config
from trainer.checkpoint import load_checkpoint, save_checkpoint
from trainer.clipping.adagc import AdaGC
from trainer.clipping.build import build_clipper
from trainer.clipping.zclip import ZClip
from trainer.config.clipping import AdaGCConfig, GlobalNormConfig, NoClippingConfig, ZClipConfig
from trainer.errors import CheckpointInvalid
from trainer.model.build import build_model
from trainer.optimizers.build import build_optimizer
from trainer.update import Update

NORMS = [1.0, 1.2, 0.9, 1.1, 1.3, 1.0, 9.0, 1.1, 1.4, 30.0, 2.0, 1.2]
"""Two spikes after a warm-up of 5."""


def one_tensor(*shape: int) -> nn.Module:
    """Returns a model of one parameter."""
    model = nn.Module()
    model.register_parameter("weight", nn.Parameter(torch.zeros(*shape)))
    return model


def norms_after_zclip(config: ZClipConfig) -> list[float]:
    model = one_tensor(4, 5)
    clipper = ZClip(config, model)
    found = []
    for step, norm in enumerate(NORMS):
        gradient = random_rows(4, 5, seed=step)
        model.weight.grad = gradient / gradient.norm() * norm
        clipper.clip(model.weight.grad.norm())
        found.append(model.weight.grad.norm().item())
    return found


def published_zclip(norms: list[float], *, alpha: float, threshold: float, warmup_steps: int) -> list[float]:
    """Returns the norms after clipping, by the paper's algorithm on plain numbers."""
    first = norms[:warmup_steps]
    mean = sum(first) / warmup_steps
    variance = sum((norm - mean) ** 2 for norm in first) / warmup_steps
    clipped = list(first)
    for norm in norms[warmup_steps:]:
        z = (norm - mean) / math.sqrt(variance)
        kept = mean + threshold**2 / z * math.sqrt(variance) if z > threshold else norm
        mean = alpha * mean + (1 - alpha) * kept
        variance = alpha * variance + (1 - alpha) * (kept - mean) ** 2
        clipped.append(kept)
    return clipped


def test_zclip_is_the_published_algorithm() -> None:
    config = ZClipConfig(decay=0.9, threshold=2.0, warmup_steps=5)
    expected = published_zclip(NORMS, alpha=0.9, threshold=2.0, warmup_steps=5)
    assert expected[6] < 1.5
    assert expected[9] < 1.5
    assert norms_after_zclip(config) == pytest.approx(expected, rel=1e-5)


def test_zclip_clips_to_its_fixed_bound_besides_and_does_not_learn_it() -> None:
    free = norms_after_zclip(ZClipConfig(decay=0.9, threshold=2.0, warmup_steps=5))
    bounded = norms_after_zclip(ZClipConfig(decay=0.9, threshold=2.0, warmup_steps=5, max_norm=1.05))
    assert bounded == pytest.approx([min(norm, 1.05) for norm in free], rel=1e-5)


def test_zclip_of_norms_that_never_differ_clips_the_first_that_does() -> None:
    model = one_tensor(3)
    clipper = ZClip(ZClipConfig(warmup_steps=2), model)
    for norm in (2.0, 2.0, 2.0, 5.0):
        model.weight.grad = torch.tensor([norm, 0.0, 0.0])
        clipper.clip(torch.tensor(norm))
    assert model.weight.grad.norm().item() == pytest.approx(2.0, abs=1e-4)


def test_adagc_is_that_of_the_reference_implementation() -> None:
    """Weights after Adam on clipped gradients: the library has the clipping inside of its own Adam."""
    shapes = [(6, 5), (7,)]
    theirs = [nn.Parameter(random_rows(*shape, seed=i)) for i, shape in enumerate(shapes)]
    model = nn.Module()
    for index, start in enumerate(theirs):
        model.register_parameter(f"weight{index}", nn.Parameter(start.detach().clone()))
    ours = list(model.parameters())
    reference = ReferenceAdaGC(
        theirs, lr=0.01, betas=(0.9, 0.99), beta=0.9, lambda_rel=1.1, lambda_abs=1.0, warmup_steps=5, weight_decay=0.0
    )
    adam = torch.optim.Adam(ours, lr=0.01, betas=(0.9, 0.99), eps=1e-8)
    # The library counts steps from 1 and is warm at its fifth: ours at the fifth has seen four.
    clipper = AdaGC(AdaGCConfig(decay=0.9, max_ratio=1.1, max_norm=1.0, warmup_steps=4), model)
    for step in range(12):
        scale = 50.0 if step in (7, 10) else 1.0
        for index, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
            mine.grad = random_rows(*mine.shape, seed=100 * step + index) * scale * (1 + index)
            other.grad = mine.grad.clone()
        clipper.clip(torch.nn.utils.get_total_norm([mine.grad for mine in ours if mine.grad is not None]))
        adam.step()
        reference.step()
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def adagc_after_warmup(**fields: Any) -> tuple[AdaGC, nn.Parameter]:
    """Returns the method, and its view of a stack of 4 experts, after steps in which expert 0 had no token."""
    model = tiny_model(dense_and_moe_configs()["moe"])
    clipper = build_clipper(AdaGCConfig(warmup_steps=2, max_norm=1e6, **fields), model, device=CPU)
    experts = model.get_parameter("blocks.1.feed_forward.experts.gate_up_weight_E2FD")
    for seed in range(4):
        for parameter in model.parameters():
            parameter.grad = random_rows(*parameter.shape, seed=seed)
        experts.grad[0] = 0.0
        clipper.clip(torch.tensor(1.0))
    assert isinstance(clipper, AdaGC)
    return clipper, experts


def test_adagc_clips_each_expert_by_its_own_history() -> None:
    clipper, experts = adagc_after_warmup()
    gradient = random_rows(*experts.shape, seed=2)
    experts.grad = gradient.clone()
    experts.grad[2] *= 100.0
    clipper.clip(torch.tensor(1.0))
    assert experts.grad[2].norm() < 2 * gradient[2].norm()
    assert experts.grad[1].norm() > 0.9 * gradient[1].norm()
    assert experts.grad[3].norm() > 0.9 * gradient[3].norm()


def test_expert_that_had_no_token_so_far_is_not_clipped_to_nothing() -> None:
    clipper, experts = adagc_after_warmup()
    experts.grad = random_rows(*experts.shape, seed=7)
    clipper.clip(torch.tensor(1.0))
    assert torch.equal(experts.grad[0], random_rows(*experts.shape, seed=7)[0])
    experts.grad = random_rows(*experts.shape, seed=7) * 10.0
    clipper.clip(torch.tensor(1.0))
    assert experts.grad[0].norm() < 1.1 * random_rows(*experts.shape, seed=7)[0].norm()


def test_max_grad_norm_is_short_for_the_global_norm() -> None:
    assert train_config().loop.gradient_clipping == GlobalNormConfig(max_norm=1.0)
    assert train_config(loop={"max_grad_norm": 0.5}).loop.gradient_clipping == GlobalNormConfig(max_norm=0.5)
    assert train_config(loop={"max_grad_norm": None}).loop.gradient_clipping == NoClippingConfig()
    loop = train_config(loop={"clipping": {"kind": "zclip"}}).loop
    assert loop.gradient_clipping == ZClipConfig()
    assert type(loop).model_validate(loop.model_dump(mode="json")) == loop


def test_two_ways_to_clip_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"max_grad_norm=1.0 and clipping of kind 'adagc' are both given"):
        train_config(loop={"max_grad_norm": 1.0, "clipping": {"kind": "adagc"}})


def test_clipping_by_either_name_gives_the_same_weights(tmp_path: Path) -> None:
    ends = [
        run_training(train_config(num_steps=3, loop=loop), tmp_path / str(number)).weights()
        for number, loop in enumerate(
            ({"max_grad_norm": 0.05}, {"clipping": {"kind": "global_norm", "max_norm": 0.05}}, {"max_grad_norm": None})
        )
    ]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert not all(torch.equal(ends[0][name], ends[2][name]) for name in ends[0])


def test_checkpoint_of_another_clippings_state_is_refused(tmp_path: Path) -> None:
    config = train_config()
    model = build_model(config.model, seed=0, device=CPU)
    optimizer = build_optimizer(config.optimizer, model)
    written, other = (
        Update(train_config(loop={"clipping": {"kind": kind}}).loop, model=model, optimizer=optimizer, device=CPU)
        for kind in ("zclip", "adagc")
    )
    run = {"config": config, "data_fingerprint": "data", "model": model, "optimizer": optimizer}
    path, _ = save_checkpoint(tmp_path, step=1, world_size=1, update=written, state={}, **run)
    with pytest.raises(CheckpointInvalid, match=r"missing tensors \['update.clipper.mean_norm_P'"):
        load_checkpoint(path, update=other, **run)


@pytest.mark.parametrize("kind", ["zclip", "adagc"])
def test_run_stopped_and_resumed_from_its_checkpoint_is_bit_equal(tmp_path: Path, kind: str) -> None:
    config = train_config(num_steps=8, loop={"clipping": {"kind": kind, "warmup_steps": 2}})
    whole = run_training(config, tmp_path / "whole")
    stopped = run_training(config, tmp_path / "run", stop_at_tokens=5 * STEP_TOKENS)
    assert stopped.last.checkpoint is not None
    resumed = run_training(config, tmp_path / "run", resume_from=stopped.last.checkpoint.folder)
    assert any(name.startswith("update.clipper.") for name in whole.optimizer())
    for mine, theirs in ((resumed.weights(), whole.weights()), (resumed.optimizer(), whole.optimizer())):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
