"""The gated delta rule: chunked form, recurrence and equation; the layers made of it."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.models import random_rows
from trainer.attention import ATTENTIONS
from trainer.attention.delta_rule import chunked_delta_rule, recurrent_delta_rule, unit_length
from trainer.config.attention import GatedDeltaNetConfig, KimiDeltaAttentionConfig

FLOAT = torch.float64


def inputs(seq_len: int, *, per_feature: bool, decay: float = 1.0) -> dict[str, Tensor]:
    """Returns 2 sequences, 3 heads of 5 key and 4 value features; `decay` is the mean of -log a."""
    log_decay = -decay * random_rows(2, seq_len, 3, 5 if per_feature else 1, seed=3, dtype=FLOAT).exp()
    return {
        "query_BLHd": unit_length(random_rows(2, seq_len, 3, 5, seed=0, dtype=FLOAT)),
        "key_BLHd": unit_length(random_rows(2, seq_len, 3, 5, seed=1, dtype=FLOAT)),
        "value_BLHe": random_rows(2, seq_len, 3, 4, seed=2, dtype=FLOAT),
        "log_decay_BLHd": log_decay,
        "strength_BLH": random_rows(2, seq_len, 3, seed=4, dtype=FLOAT).sigmoid(),
    }


def test_recurrence_is_the_published_equation() -> None:
    given = inputs(6, per_feature=True)
    out, state = recurrent_delta_rule(**given)
    for sequence, head in ((0, 0), (1, 2)):
        memory = torch.zeros(5, 4, dtype=FLOAT)
        for t in range(6):
            key, value = given["key_BLHd"][sequence, t, head], given["value_BLHe"][sequence, t, head]
            strength = given["strength_BLH"][sequence, t, head]
            decay = given["log_decay_BLHd"][sequence, t, head].exp().diag()
            forget = torch.eye(5, dtype=FLOAT) - strength * torch.outer(key, key)
            memory = forget @ decay @ memory + strength * torch.outer(key, value)
            expected = memory.t() @ given["query_BLHd"][sequence, t, head] / 5**0.5
            torch.testing.assert_close(out[sequence, t, head], expected, rtol=0, atol=1e-14)
        torch.testing.assert_close(state[sequence, head], memory, rtol=0, atol=1e-14)


@pytest.mark.parametrize("per_feature", [True, False], ids=["kda", "gdn"])
@pytest.mark.parametrize(("seq_len", "chunk_size"), [(1, 4), (8, 4), (11, 4), (11, 16), (16, 1), (37, 16)])
def test_chunked_form_equals_the_recurrence(seq_len: int, chunk_size: int, per_feature: bool) -> None:
    given = inputs(seq_len, per_feature=per_feature)
    expected, expected_state = recurrent_delta_rule(**given)
    out, state = chunked_delta_rule(**given, chunk_size=chunk_size)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(state, expected_state, rtol=0, atol=1e-12)


@pytest.mark.parametrize("per_feature", [True, False], ids=["kda", "gdn"])
def test_gradients_of_the_chunked_form_equal_those_of_the_recurrence(per_feature: bool) -> None:
    given = {name: value.requires_grad_() for name, value in inputs(11, per_feature=per_feature).items()}
    weight = random_rows(2, 11, 3, 4, seed=7, dtype=FLOAT)
    expected = torch.autograd.grad((recurrent_delta_rule(**given)[0] * weight).sum(), list(given.values()))
    chunked = torch.autograd.grad((chunked_delta_rule(**given, chunk_size=4)[0] * weight).sum(), list(given.values()))
    for name, fast, slow in zip(given, chunked, expected, strict=True):
        torch.testing.assert_close(fast, slow, rtol=0, atol=1e-11, msg=name)


@pytest.mark.parametrize("per_feature", [True, False], ids=["kda", "gdn"])
@pytest.mark.parametrize("split", [1, 4, 7])
def test_prefill_in_chunks_then_decoding_equals_the_whole(split: int, per_feature: bool) -> None:
    given = inputs(10, per_feature=per_feature)
    whole, last_state = chunked_delta_rule(**given, chunk_size=4)
    out, state = chunked_delta_rule(**{name: value[:, :split] for name, value in given.items()}, chunk_size=4)
    outputs = [out]
    for t in range(split, 10):
        step, state = recurrent_delta_rule(
            **{name: value[:, t : t + 1] for name, value in given.items()}, state_BHde=state
        )
        outputs.append(step)
    torch.testing.assert_close(torch.cat(outputs, dim=1), whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(state, last_state, rtol=0, atol=1e-12)


@pytest.mark.parametrize("per_feature", [True, False], ids=["kda", "gdn"])
@pytest.mark.parametrize("decay", [1e-4, 30.0, 1e4])
def test_no_decay_is_too_strong_or_too_weak_for_float32(decay: float, per_feature: bool) -> None:
    given = inputs(40, per_feature=per_feature, decay=decay)
    expected, _ = recurrent_delta_rule(**given)
    narrow = {name: value.float().requires_grad_() for name, value in given.items()}
    out, _ = chunked_delta_rule(**narrow, chunk_size=16)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=1e-5)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(out.sum(), list(narrow.values())))


def test_memory_recalls_the_latest_value_of_a_key() -> None:
    # Two orthogonal keys, full strength, no decay: a key written twice holds the second value, not the sum.
    keys = torch.eye(4, dtype=FLOAT)[[0, 1, 0, 1, 0]].reshape(1, 5, 1, 4)
    values = random_rows(1, 5, 1, 3, dtype=FLOAT)
    ones, zeros = torch.ones(1, 5, 1, dtype=FLOAT), torch.zeros(1, 5, 1, 4, dtype=FLOAT)
    _, state = chunked_delta_rule(keys, keys, values, log_decay_BLHd=zeros, strength_BLH=ones, chunk_size=4)
    torch.testing.assert_close(state[0, 0, :2], values[0, [4, 3], 0], rtol=0, atol=1e-14)


CONFIGS: dict[str, Any] = {
    "kda": KimiDeltaAttentionConfig(num_heads=2, head_dim=6),
    "gdn": GatedDeltaNetConfig(num_heads=2, head_dim=6, v_head_dim=10),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_layer_equals_its_equations_one_position_at_a_time(kind: str) -> None:
    config = CONFIGS[kind]
    layer = ATTENTIONS[kind](config, dim=16, norm_eps=1e-6).double()
    for seed, parameter in enumerate(layer.parameters()):
        parameter.data.copy_(random_rows(*parameter.shape, seed=seed, dtype=FLOAT) * 0.5)
    x_LD = random_rows(21, 16, seed=9, dtype=FLOAT)
    heads: dict[str, Tensor] = {}
    for name in ("query", "key", "value"):
        projected = x_LD @ getattr(layer, name).weight.t()
        weight_CW = getattr(layer, f"{name}_conv").weight_C1W[:, 0]
        rows = []
        for t in range(len(x_LD)):
            seen = [projected[t - 3 + w] * weight_CW[:, w] for w in range(4) if t - 3 + w >= 0]
            rows.append(torch.stack(seen).sum(0))
        convolved = torch.stack(rows)
        heads[name] = (convolved * convolved.sigmoid()).unflatten(-1, (2, -1))
    for name in ("query", "key"):
        heads[name] = heads[name] / (heads[name].square().sum(-1, keepdim=True) + 1e-6).sqrt()
    if kind == "kda":
        raw = x_LD @ layer.decay_down.weight.t() @ layer.decay_up.weight.t()
        gate = (x_LD @ layer.gate_down.weight.t() @ layer.gate_up.weight.t()).sigmoid()
    else:
        raw = x_LD @ layer.decay_in.weight.t()
        gate = x_LD @ layer.gate.weight.t()
        gate = gate * gate.sigmoid()
    steps = (1 + (raw + layer.decay.bias).exp()).log().unflatten(-1, (2, -1))
    out_1LHe, _ = recurrent_delta_rule(
        *(heads[name].unsqueeze(0) for name in ("query", "key", "value")),
        log_decay_BLHd=-(layer.decay.log_rate_H.exp().unsqueeze(-1) * steps).unsqueeze(0),
        strength_BLH=(x_LD @ layer.strength.weight.t()).sigmoid().unsqueeze(0),
    )
    normalised = out_1LHe * layer.norm.gain / (out_1LHe.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    expected = (normalised.flatten(-2) * gate) @ layer.out.weight.t()
    torch.testing.assert_close(layer(x_LD.unsqueeze(0)), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", CONFIGS)
def test_memory_starts_with_half_lives_between_half_a_position_and_700(kind: str) -> None:
    layer = ATTENTIONS[kind](CONFIGS[kind], dim=16, norm_eps=1e-6)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in layer.named_parameters():
        if name.startswith("decay."):
            parameter.data.copy_(layer.special_start(name, generator))
    log_decay = layer.decay(torch.zeros(1, 1, layer.decay.bias.numel()))
    assert (log_decay >= -1.6).all()
    assert (log_decay <= -0.001).all()
