"""What a precision changes, and what stays in float32."""

import torch

from tests.support.models import CPU, dense_and_moe_configs, random_tokens, tiny_model
from trainer.config.precision import BFloat16AutocastConfig, Float32Config
from trainer.model.dense_mlp import DenseMLP
from trainer.model.norm import RMSNorm
from trainer.model.transformer import Transformer
from trainer.precision.build import build_precision
from trainer.routers.base import Router

CONFIG = dense_and_moe_configs()["moe_everything"]


def loss_of(model: Transformer, precision: Float32Config | BFloat16AutocastConfig) -> torch.Tensor:
    with build_precision(precision, CPU).autocast():
        return model(random_tokens(4, 16), random_tokens(4, 16, seed=1)).loss


def test_bfloat16_loss_is_near_and_not_equal() -> None:
    model = tiny_model(CONFIG, spread=3.0)
    exact, rounded = loss_of(model, Float32Config()), loss_of(model, BFloat16AutocastConfig())
    assert rounded.dtype == torch.float32
    assert exact != rounded
    torch.testing.assert_close(rounded, exact, rtol=1e-2, atol=0)


def test_bfloat16_is_used_by_matrix_products_and_not_by_router_and_norms() -> None:
    model = tiny_model(CONFIG)
    outputs: dict[str, set[torch.dtype]] = {"mlp": set(), "norm": set(), "router": set()}

    def record(part: str) -> object:
        return lambda _module, _inputs, output: outputs[part].add(
            output.weights_TK.dtype if part == "router" else output.dtype
        )

    for name, module in model.named_modules():
        part = {DenseMLP: "mlp", RMSNorm: "norm"}.get(type(module), "router" if isinstance(module, Router) else None)
        if part is not None and not name.endswith(("query_norm", "key_norm")):  # those give back what they got
            module.register_forward_hook(record(part))
    loss_of(model, BFloat16AutocastConfig())
    assert outputs == {"mlp": {torch.bfloat16}, "norm": {torch.float32}, "router": {torch.float32}}


def test_gradients_and_weights_are_float32() -> None:
    model = tiny_model(CONFIG)
    loss_of(model, BFloat16AutocastConfig()).backward()
    for parameter in model.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()


def test_bfloat16_gradient_points_the_same_way() -> None:
    model = tiny_model(CONFIG, spread=3.0)
    gradients = []
    for precision in (Float32Config(), BFloat16AutocastConfig()):
        model.zero_grad()
        loss_of(model, precision).backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.98


def test_logits_are_float32_under_autocast() -> None:
    model = tiny_model(CONFIG)
    with build_precision(BFloat16AutocastConfig(), CPU).autocast():
        assert model(random_tokens(1, 4)).logits_BLV.dtype == torch.float32


def test_fp32_leaves_autocast_off() -> None:
    with build_precision(Float32Config(), CPU).autocast():
        assert not torch.is_autocast_enabled("cpu")
