"""Upcycling: what a mixture of experts made of a dense model computes before its first step."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.models import CPU, model_config, moe_fields, random_tokens, tiny_model
from tests.support.training import train_config
from trainer.config import TrainConfig
from trainer.interop.errors import StartInvalid
from trainer.interop.start import Start, save_start
from trainer.model.build import build_model
from trainer.model.transformer import Transformer
from trainer.start.build import apply_start

HIDDEN_DIM = 48
TOKENS = random_tokens(3, 12, seed=1)


@pytest.fixture
def dense(tmp_path: Path) -> Transformer:
    """A dense model of two layers, saved to start from at `tmp_path`."""
    model = tiny_model(model_config(hidden_dim=HIDDEN_DIM, vocab_size=1024))
    start = Start(model=model.config, tokenizer="bpe-1024", max_position_embeddings=16, origin="a test")
    save_start(tmp_path, start, model.state_dict())
    return model


def upcycled(path: Path, *, method: dict[str, Any] | None = None, seed: int = 0, **moe: Any) -> Transformer:
    """Returns the model that a run with this mixture of experts starts from."""
    config = upcycling_config(path, method=method, seed=seed, **moe)
    model = build_model(config.model, seed=config.seed, device=CPU)
    report = apply_start(config, model, root=None)
    assert report is not None
    assert report.origin == "a test"
    return model


def upcycling_config(path: Path, *, method: dict[str, Any] | None = None, seed: int = 0, **moe: Any) -> TrainConfig:
    num_layers = 2
    fields = moe_fields(hidden_dim=HIDDEN_DIM) | moe
    model = model_config(hidden_dim=HIDDEN_DIM, vocab_size=1024, num_layers=num_layers, moe=fields)
    start = {"kind": "upcycle", "path": str(path), "method": method or {"kind": "copy"}}
    return train_config(model=model.model_dump(), start=start, seed=seed)


def logits_of(model: Transformer) -> Tensor:
    with torch.no_grad():
        logits_BLV = model.eval()(TOKENS).logits_BLV
    assert logits_BLV is not None
    return logits_BLV


def error_of(model: Transformer, dense: Transformer) -> float:
    """Returns the largest difference of the logits over the largest logit."""
    expected = logits_of(dense)
    return ((logits_of(model) - expected).abs().max() / expected.abs().max()).item()


GRANULAR = {"kind": "granular"}
EXACT: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "copy": ({"kind": "copy"}, {}),
    "copy-sigmoid-scaled": ({"kind": "copy"}, {"router": {"score": "sigmoid", "scale": 2.5}}),
    "copy-hash": ({"kind": "copy"}, {"router": {"kind": "hash"}}),
    "copy-scaled-output": ({"kind": "copy"}, {"output_scale": {"init": 2.0}}),
    "copy-biased-experts": ({"kind": "copy"}, {"expert_bias": True, "router": {"bias": True}}),
    "copy-every-second-layer": ({"kind": "copy"}, {"every": 2}),
    "copy-dense-first": ({"kind": "copy"}, {"num_dense_layers": 1}),
    "copy-loss-free-bias": ({"kind": "copy"}, {"balancing": [{"kind": "loss_free_bias", "update_rate": 0.01}]}),
    "granular-halves": (GRANULAR, {"hidden_dim": 24, "num_experts": 8, "top_k": 2}),
    "granular-thirds-twice": (GRANULAR, {"hidden_dim": 16, "num_experts": 12, "top_k": 6}),
    "granular-one-set": (GRANULAR, {"hidden_dim": 16, "num_experts": 3, "top_k": 3}),
    "granular-scaled": (GRANULAR, {"hidden_dim": 24, "num_experts": 8, "router": {"score": "sigmoid", "scale": 2.5}}),
    "granular-shared": (GRANULAR, {"hidden_dim": 16, "num_experts": 8, "num_shared_experts": 1}),
    "granular-shared-gate": (
        GRANULAR,
        {"hidden_dim": 16, "num_experts": 4, "top_k": 4, "num_shared_experts": 2, "shared_gate": True},
    ),
}


@pytest.mark.parametrize("case", EXACT)
def test_model_computes_what_the_dense_one_did(tmp_path: Path, dense: Transformer, case: str) -> None:
    method, moe = EXACT[case]
    assert error_of(upcycled(tmp_path, method=method, **moe), dense) < 1e-5


def test_weights_that_are_not_normalised_change_what_is_computed(tmp_path: Path, dense: Transformer) -> None:
    """The test above would notice: nothing but the weights' sum is different here."""
    assert error_of(upcycled(tmp_path, router={"normalize": False}), dense) > 1e-2


def test_tokens_of_a_granular_model_take_whole_sets_of_shards(tmp_path: Path, dense: Transformer) -> None:
    model = upcycled(tmp_path, method=GRANULAR, hidden_dim=16, num_experts=12, top_k=6)
    sets = set()
    for routing in model.eval()(TOKENS).routings:
        for chosen_E in routing.assignments_TE():
            per_set = chosen_E.view(4, 3).sum(dim=1).tolist()
            assert sorted(per_set) == [0, 0, 3, 3]
            sets.add(tuple(per_set))
    assert len(sets) > 1, "tokens differ in the sets they take"


def test_experts_of_a_copy_are_equal_and_routers_are_new(tmp_path: Path, dense: Transformer) -> None:
    model = upcycled(tmp_path, seed=5)
    scratch = build_model(model.config, seed=5, device=CPU)
    for layer, new, block in zip(model.moe_layers(), scratch.moe_layers(), dense.blocks, strict=True):
        assert torch.equal(layer.router.weight, new.router.weight)
        for expert in range(4):
            assert torch.equal(layer.experts.gate_up_weight_E2FD[expert, 0], block.feed_forward.gate.weight)
            assert torch.equal(layer.experts.down_weight_EFD[expert], block.feed_forward.down.weight.t())


def test_noise_changes_its_share_of_every_expert_by_its_deviation(tmp_path: Path, dense: Transformer) -> None:
    model = upcycled(tmp_path, method={"kind": "noise", "std": 0.1, "share": 0.25})
    for layer, block in zip(model.moe_layers(), dense.blocks, strict=True):
        original = block.feed_forward.up.weight
        difference = layer.experts.gate_up_weight_E2FD[:, 1].detach() - original
        for expert in range(4):
            changed = difference[expert] != 0
            assert changed.float().mean().item() == pytest.approx(0.25, abs=0.05)
            assert (difference[expert][changed].std() / original.std()).item() == pytest.approx(0.1, rel=0.15)
        assert not torch.equal(difference[0], difference[1])


def test_dropped_features_are_drawn_anew_in_all_three_matrices(tmp_path: Path, dense: Transformer) -> None:
    model = upcycled(tmp_path, method={"kind": "drop", "share": 0.5})
    kept_by_expert = set()
    for layer, block in zip(model.moe_layers(), dense.blocks, strict=True):
        mlp, experts = block.feed_forward, layer.experts
        for expert in range(4):
            same_F = [
                (experts.gate_up_weight_E2FD[expert, 0] == mlp.gate.weight).all(dim=1),
                (experts.gate_up_weight_E2FD[expert, 1] == mlp.up.weight).all(dim=1),
                (experts.down_weight_EFD[expert] == mlp.down.weight.t()).all(dim=1),
            ]
            assert torch.equal(same_F[0], same_F[1])
            assert torch.equal(same_F[0], same_F[2])
            assert same_F[0].sum() == HIDDEN_DIM // 2
            kept_by_expert.add(tuple(same_F[0].tolist()))
        assert (experts.gate_up_weight_E2FD[:, 0].std() / mlp.gate.weight.std()).item() == pytest.approx(1.0, rel=0.05)
    assert len(kept_by_expert) == 8


@pytest.mark.parametrize("method", [{"kind": "noise"}, {"kind": "drop"}], ids=["noise", "drop"])
def test_what_is_drawn_depends_on_the_seed_alone(tmp_path: Path, dense: Transformer, method: dict[str, Any]) -> None:
    first, again, other = (upcycled(tmp_path, method=method, seed=seed).state_dict() for seed in (0, 0, 1))
    name = "blocks.0.feed_forward.experts.gate_up_weight_E2FD"
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], other[name])
    torch.manual_seed(0)
    drawn = torch.rand(1)
    torch.manual_seed(0)
    upcycled(tmp_path, method=method)
    assert torch.equal(torch.rand(1), drawn)


@pytest.mark.parametrize(
    ("method", "moe", "reason"),
    [
        ({"kind": "copy"}, {"hidden_dim": 24}, r"model\.moe\.hidden_dim=24 does not fit .* hidden_dim=48"),
        (GRANULAR, {"hidden_dim": 40}, r"model\.moe\.hidden_dim=40 does not fit"),
        (
            GRANULAR,
            {"hidden_dim": 16, "num_experts": 4},
            r"model\.moe\.num_experts=4 is not a multiple of the 3 routed",
        ),
        (GRANULAR, {"hidden_dim": 16, "num_experts": 6}, r"model\.moe\.top_k=2 is not a multiple of the 3"),
        (GRANULAR, {"hidden_dim": 24, "num_shared_experts": 2}, r"num_shared_experts=2 leaves none of the 2 shards"),
        ({"kind": "copy"}, {"activation": "geglu"}, r"model\.moe\.activation=geglu, and .* has swiglu"),
    ],
)
def test_sizes_that_do_not_go_together_are_refused(
    tmp_path: Path, dense: Transformer, method: dict[str, Any], moe: dict[str, Any], reason: str
) -> None:
    with pytest.raises(StartInvalid, match=reason):
        upcycled(tmp_path, method=method, **moe)


def test_another_dense_model_is_refused_by_its_fields(tmp_path: Path, dense: Transformer) -> None:
    config = upcycling_config(tmp_path)
    other = config.model.model_dump() | {"norm_eps": 1e-6}
    config = TrainConfig.model_validate(config.model_dump() | {"model": other})
    with pytest.raises(StartInvalid, match=r"model\.norm_eps: weights 1e-05, this run 1e-06"):
        apply_start(config, build_model(config.model, seed=0, device=CPU), root=None)


def test_mixture_of_experts_is_not_upcycled_again(tmp_path: Path) -> None:
    model = tiny_model(model_config(moe=moe_fields(), vocab_size=1024))
    start = Start(model=model.config, tokenizer="bpe-1024", max_position_embeddings=16, origin="a test")
    save_start(tmp_path, start, model.state_dict())
    with pytest.raises(StartInvalid, match="is a mixture of experts already"):
        upcycled(tmp_path)
