"""Every attention variant: causal, batch-wise and document-wise independent, differentiable, sized in closed form."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.component_configs import attention_examples, config_classes
from tests.support.models import CPU, META, model_config, random_rows, random_tokens, tiny_model
from tests.support.training_memory import bytes_kept, train_config
from trainer.attention import ATTENTIONS
from trainer.attention.base import Attention
from trainer.attention.documents import Documents
from trainer.config.attention import AttentionConfig
from trainer.model.attention_size import attention_parameters
from trainer.model.build import build_model
from trainer.model.size import flops_per_token, memory_estimate, model_size

DIM = 16
EXAMPLES = attention_examples()
every_kind = pytest.mark.parametrize("kind", EXAMPLES)

LENGTHS = ((9, 1, 2, 14), (4, 4, 4, 4, 4, 6), (26,), (1, 25), (21, 5), (7, 18, 1), (1,) * 26, (17, 9))
"""Lengths of the documents of one sequence of 26: longer and shorter than every window, block and chunk."""


def layer_of(kind: str) -> Attention:
    """Returns a layer with no parameter near zero."""
    config = EXAMPLES[kind]
    layer = ATTENTIONS[config.kind](config, dim=DIM, norm_eps=1e-5)
    for seed, parameter in enumerate(layer.parameters()):
        parameter.data.copy_(random_rows(*parameter.shape, seed=seed) * 0.5)
    return layer


def documents_of(*lengths: tuple[int, ...]) -> Documents:
    """Returns the documents of sequences, each given as the lengths of its documents."""
    return Documents(torch.stack([torch.arange(len(row)).repeat_interleave(torch.tensor(row)) for row in lengths]))


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
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=str)
def test_document_has_the_output_it_has_alone(kind: str, dtype: torch.dtype, tolerance: float) -> None:
    layer, x_BLD = layer_of(kind).to(dtype), random_rows(len(LENGTHS), 26, DIM, dtype=dtype)
    packed = layer(x_BLD, documents_of(*LENGTHS))
    for row, lengths in enumerate(LENGTHS):
        documents = zip(x_BLD[row].split(lengths), packed[row].split(lengths), strict=True)
        for alone_LD, inside in documents:
            expected = layer(alone_LD.unsqueeze(0))[0]
            scale = max(1.0, expected.abs().max().item())
            torch.testing.assert_close(inside, expected, rtol=tolerance, atol=tolerance * scale)


@every_kind
def test_documents_give_each_other_no_gradient(kind: str) -> None:
    layer, x_BLD = layer_of(kind), random_rows(1, 26, DIM).requires_grad_()
    layer(x_BLD, documents_of((7, 18, 1)))[:, 7:25].square().sum().backward()
    assert torch.equal(x_BLD.grad[:, :7], torch.zeros(1, 7, DIM))
    assert (x_BLD.grad[:, 7:25].abs().sum(-1) > 0).all()
    assert torch.equal(x_BLD.grad[:, 25:], torch.zeros(1, 1, DIM))


@every_kind
def test_gradients_of_packed_documents_are_those_of_each_alone(kind: str) -> None:
    layer, x_BLD = layer_of(kind).double(), random_rows(1, 26, DIM, dtype=torch.float64)
    weight_BLD = random_rows(1, 26, DIM, seed=1, dtype=torch.float64)
    layer.zero_grad()
    (layer(x_BLD, documents_of((9, 3, 14))) * weight_BLD).sum().backward()
    packed = {name: parameter.grad.clone() for name, parameter in layer.named_parameters()}
    layer.zero_grad()
    for alone_BLD, weight in zip(x_BLD.split((9, 3, 14), 1), weight_BLD.split((9, 3, 14), 1), strict=True):
        (layer(alone_BLD) * weight).sum().backward()
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(packed[name], parameter.grad, rtol=1e-9, atol=1e-9, msg=name)


@every_kind
def test_within_documents_it_is_causal_independent_and_the_same_for_a_prefix(kind: str) -> None:
    layer, x_BLD = layer_of(kind).double(), random_rows(len(LENGTHS), 26, DIM, dtype=torch.float64)
    documents = documents_of(*LENGTHS)
    whole = layer(x_BLD, documents)
    changed_BLD = x_BLD.clone()
    changed_BLD[:, 16:] += 1.0
    assert torch.equal(layer(changed_BLD, documents)[:, :16], whole[:, :16])
    prefix = layer(x_BLD[:, :16], Documents(documents.index_BL[:, :16]))
    torch.testing.assert_close(prefix, whole[:, :16], rtol=1e-10, atol=1e-10)
    one = layer(x_BLD[1:2], Documents(documents.index_BL[1:2]))
    torch.testing.assert_close(one, whole[1:2], rtol=1e-10, atol=1e-10)


@every_kind
def test_sequence_of_one_document_has_the_output_it_has_without_masking(kind: str) -> None:
    layer, x_BLD = layer_of(kind).double(), random_rows(2, 19, DIM, dtype=torch.float64)
    masked = layer(x_BLD, documents_of((19,), (19,)))
    torch.testing.assert_close(masked, layer(x_BLD), rtol=1e-10, atol=1e-10)


@every_kind
def test_logits_of_packed_documents_are_those_of_each_alone(kind: str) -> None:
    config = model_config(num_layers=3).model_copy(update={"attention": EXAMPLES[kind]})
    model, tokens_BL, lengths = tiny_model(config).double(), random_tokens(1, 26), (7, 2, 17)
    packed = model(tokens_BL, documents_BL=documents_of(lengths).index_BL).logits_BLV
    alone = torch.cat([model(tokens).logits_BLV for tokens in tokens_BL.split(lengths, dim=1)], dim=1)
    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-10)
    assert (model(tokens_BL).logits_BLV - alone)[:, 7:].abs().max() > 1e-3


class _NoHostRead(TorchDispatchMode):
    """Fails where a value is read on the host, which on a GPU would wait for everything queued before it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not {"_local_scalar_dense", "nonzero"} & set(str(func).split(".")), f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


@every_kind
def test_keeping_documents_apart_reads_nothing_on_the_host(kind: str) -> None:
    layer, x_BLD, documents = layer_of(kind), random_rows(2, 26, DIM), documents_of((7, 18, 1), (26,))
    with _NoHostRead():
        layer(x_BLD, documents).sum().backward()
    assert layer.get_parameter(layer.residual_weights[0]).grad is not None


@every_kind
def test_bfloat16_autocast_keeps_documents_apart(kind: str) -> None:
    layer, x_BLD, documents = layer_of(kind), random_rows(1, 26, DIM), documents_of((7, 18, 1))
    exact = layer(x_BLD, documents)
    changed_BLD = x_BLD.clone()
    changed_BLD[:, :7] += 1.0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded, changed = layer(x_BLD, documents), layer(changed_BLD, documents)
    # Of 8 bits; over four times the positions of the test without documents.
    assert (rounded.float() - exact).norm() < 0.04 * exact.norm()
    assert torch.equal(rounded[:, 7:], changed[:, 7:])


def decoded(layer: Attention, x_BLD: Tensor) -> Tensor:
    """Returns out_BLD of one position after the other."""
    past, outputs = None, []
    for x_BD in x_BLD.unbind(1):
        out_BD, past = layer.decode(x_BD, past)
        outputs.append(out_BD)
    return torch.stack(outputs, dim=1)


@every_kind
def test_decoding_equals_all_positions_at_once(kind: str) -> None:
    layer, x_BLD = layer_of(kind).double(), random_rows(2, 26, DIM, dtype=torch.float64)
    torch.testing.assert_close(decoded(layer, x_BLD), layer(x_BLD), rtol=1e-10, atol=1e-10)


@every_kind
def test_decoding_in_bfloat16_autocast_stays_near(kind: str) -> None:
    layer, x_BLD = layer_of(kind), random_rows(2, 6, DIM)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        rounded = decoded(layer, x_BLD)
    exact = layer(x_BLD)
    assert (rounded.float() - exact).norm() < 0.03 * exact.norm()


@every_kind
def test_decoding_forks_from_the_same_past(kind: str) -> None:
    """A position leaves the past it was given as it was, so that several continuations can be tried."""
    layer, x_BLD = layer_of(kind), random_rows(2, 9, DIM)
    past = None
    for x_BD in x_BLD[:, :7].unbind(1):
        _, past = layer.decode(x_BD, past)
    before = [tensor.clone() for tensor in past.kept]
    first, _ = layer.decode(x_BLD[:, 7], past)
    other, _ = layer.decode(x_BLD[:, 8], past)
    assert past.num_positions == 7
    assert all(torch.equal(tensor, same) for tensor, same in zip(past.kept, before, strict=True))
    assert not torch.equal(first, other)
    assert torch.equal(layer.decode(x_BLD[:, 7], past)[0], first)


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
@pytest.mark.parametrize("document_masking", [False, True], ids=["", "documents"])
def test_memory_estimate_is_what_autograd_keeps(
    kind: str, seq_len: int, precision: str, document_masking: bool
) -> None:
    config = train_config(
        attention=EXAMPLES[kind].model_dump(),
        seq_len=seq_len,
        precision=precision,
        document_masking=document_masking,
    )
    casts = 2 * model_size(config.model).non_embedding_total if precision == "bf16_autocast" else 0
    head_gradient = 4 * config.model.vocab_size * config.model.dim
    activations = memory_estimate(config).activations_gib * 2**30
    assert activations + casts == pytest.approx(bytes_kept(config) - head_gradient, rel=0.1)
