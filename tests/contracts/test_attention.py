"""Every attention variant: causal, batch-wise independent, differentiable, and sized in closed form."""

import pytest
import torch

from tests.support.component_configs import attention_examples, config_classes
from tests.support.models import CPU, META, model_config, random_rows, random_tokens
from tests.support.training_memory import bytes_kept, train_config
from trainer.attention import ATTENTIONS
from trainer.attention.base import Attention
from trainer.config.attention import AttentionConfig
from trainer.model.attention_size import attention_parameters
from trainer.model.build import build_model
from trainer.model.size import flops_per_token, memory_estimate, model_size

DIM = 16
EXAMPLES = attention_examples()
every_kind = pytest.mark.parametrize("kind", EXAMPLES)


def layer_of(kind: str) -> Attention:
    """Returns a layer with no parameter near zero."""
    config = EXAMPLES[kind]
    layer = ATTENTIONS[config.kind](config, dim=DIM, norm_eps=1e-5)
    for seed, parameter in enumerate(layer.parameters()):
        parameter.data.copy_(random_rows(*parameter.shape, seed=seed) * 0.5)
    return layer


def test_registry_has_the_kinds_of_the_config() -> None:
    assert set(ATTENTIONS) == set(config_classes(AttentionConfig))


@every_kind
def test_later_positions_do_not_reach_earlier_ones(kind: str) -> None:
    layer, x_BLD = layer_of(kind), random_rows(2, 11, DIM)
    changed_BLD = x_BLD.clone()
    changed_BLD[:, 6:] += 1.0
    before, after = layer(x_BLD), layer(changed_BLD)
    assert before.shape == x_BLD.shape
    assert torch.equal(before[:, :6], after[:, :6])
    assert not torch.equal(before[:, 6:], after[:, 6:])


@every_kind
def test_earlier_positions_reach_later_ones(kind: str) -> None:
    layer, x_BLD = layer_of(kind), random_rows(1, 5, DIM)
    changed_BLD = x_BLD.clone()
    changed_BLD[:, 3] += 1.0
    assert (layer(x_BLD)[:, 4] - layer(changed_BLD)[:, 4]).abs().max() > 1e-4


@every_kind
@pytest.mark.parametrize("length", [1, 4, 5, 13])
def test_prefix_has_the_output_it_has_in_the_whole(kind: str, length: int) -> None:
    layer, x_BLD = layer_of(kind).double(), random_rows(2, 19, DIM, dtype=torch.float64)
    torch.testing.assert_close(layer(x_BLD[:, :length]), layer(x_BLD)[:, :length], rtol=1e-10, atol=1e-10)


@every_kind
def test_sequences_are_independent(kind: str) -> None:
    layer, x_BLD = layer_of(kind), random_rows(3, 6, DIM)
    torch.testing.assert_close(layer(x_BLD)[1:2], layer(x_BLD[1:2]), rtol=1e-5, atol=1e-5)


@every_kind
def test_every_parameter_and_the_input_get_a_finite_gradient(kind: str) -> None:
    layer, x_BLD = layer_of(kind), random_rows(2, 6, DIM).requires_grad_()
    layer(x_BLD).square().sum().backward()
    for tensor in (x_BLD, *layer.parameters()):
        assert tensor.grad.isfinite().all()
        assert tensor.grad.abs().sum() > 0


@every_kind
def test_bfloat16_autocast_stays_near(kind: str) -> None:
    layer, x_BLD = layer_of(kind), random_rows(2, 6, DIM)
    exact = layer(x_BLD)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = layer(x_BLD)
    assert (rounded.float() - exact).norm() < 0.03 * exact.norm()


@every_kind
def test_residual_weights_are_parameters(kind: str) -> None:
    layer = layer_of(kind)
    assert layer.residual_weights
    assert set(layer.residual_weights) <= dict(layer.named_parameters()).keys()


@every_kind
def test_model_with_it_has_its_closed_form_size(kind: str) -> None:
    config = model_config().model_copy(update={"attention": EXAMPLES[kind]})
    model = build_model(config, seed=0, device=META)
    assert model_size(config).total == sum(parameter.numel() for parameter in model.parameters())
    layer = model.blocks[0].attention
    size = attention_parameters(config.attention, dim=config.dim)
    matrices = sum(parameter.numel() for parameter in layer.parameters() if parameter.dim() >= 2)
    assert size.matrices + size.block_matrices == matrices
    assert size.vectors == sum(parameter.numel() for parameter in layer.parameters() if parameter.dim() < 2)
    assert flops_per_token(config, seq_len=64) >= flops_per_token(config, seq_len=8) > 0


@every_kind
def test_initial_weights_are_finite_and_the_same_again(kind: str) -> None:
    config = model_config().model_copy(update={"attention": EXAMPLES[kind]})
    first, again = build_model(config, seed=1, device=CPU), build_model(config, seed=1, device=CPU)
    for name, parameter in first.named_parameters():
        assert parameter.isfinite().all(), name
        assert torch.equal(parameter, again.get_parameter(name)), name
    tokens_BL = random_tokens(2, 9)
    assert first(tokens_BL, tokens_BL).loss.isfinite()


@every_kind
@pytest.mark.parametrize("seq_len", [32, 96])
@pytest.mark.parametrize("precision", ["fp32", "bf16_autocast"])
def test_memory_estimate_is_what_autograd_keeps(kind: str, seq_len: int, precision: str) -> None:
    config = train_config(attention=EXAMPLES[kind].model_dump(), seq_len=seq_len, precision=precision)
    casts = 2 * model_size(config.model).non_embedding_total if precision == "bf16_autocast" else 0
    head_gradient = 4 * config.model.vocab_size * config.model.dim
    activations = memory_estimate(config).activations_gib * 2**30
    assert activations + casts == pytest.approx(bytes_kept(config) - head_gradient, rel=0.1)
