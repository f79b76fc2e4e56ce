"""Admission: every mistake is named with its place in the user's document, and the work is bounded."""

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.admission import admit
from orchestrator.capacity import Capacity, NodeCapacity
from orchestrator.errors import SpecProblem, SpecRejected
from orchestrator.search.space import resolve
from orchestrator.spec import ExperimentSpec
from tests.support.specs import experiment_document, train_document
from trainer.config.routers import TopKRouterConfig

LAPTOP = Capacity(nodes=(NodeCapacity(cpus=2, gpus=0, memory_gib=4),))
DELETE = object()


def changed(pointer: str, value: Any, **fields: Any) -> dict[str, Any]:
    """The valid document with the value at one place replaced, added or deleted."""
    document = copy.deepcopy(experiment_document(**fields))
    *parents, last = pointer.strip("/").split("/")
    node: Any = document
    for part in parents:
        node = node[int(part)] if isinstance(node, list) else node[part]
    if value is DELETE:
        del node[last]
    else:
        node[int(last) if isinstance(node, list) else last] = value
    return document


def problems_of(document: object, capacity: Capacity | None = LAPTOP) -> list[SpecProblem]:
    with pytest.raises(SpecRejected) as rejected:
        admit(document, capacity=capacity)
    return rejected.value.problems


def test_valid_document_is_admitted_with_all_defaults_and_as_it_was_sent() -> None:
    document = experiment_document()
    admitted = admit(document, capacity=LAPTOP)
    assert admitted.spec == ExperimentSpec.model_validate(document)
    assert admitted.document == experiment_document()
    assert admitted.warnings == []


@pytest.mark.parametrize(
    ("pointer", "value", "code", "at", "says"),
    [
        ("/base/model/moe/topk", 2, "unknown_field", "/base/model/moe/topk", "did you mean top_k?"),
        ("/scedule", {}, "unknown_field", "/scedule", "did you mean scheduler"),
        ("/base/model/moe/top_k", 9, "invalid", "/base/model/moe/top_k", "top_k=9 exceeds num_experts=4"),
        ("/base/model/moe/top_k", DELETE, "missing_field", "/base/model/moe/top_k", "'top_k' is missing"),
        ("/base/model/moe/top_k", 0, "out_of_range", "/base/model/moe/top_k", "at least 1"),
        ("/base/model/dim", 33, "out_of_range", "/base/model/dim", "a multiple of 8"),
        ("/base/optimizer/lr", "0.001", "wrong_type", "/base/optimizer/lr", "write 0.001 without quotes"),
        ("/base/optimizer/lr", "fast", "wrong_type", "/base/optimizer/lr", "has to be a number, not text"),
        ("/base/optimizer/lr", True, "wrong_type", "/base/optimizer/lr", "has to be a number"),
        ("/base/seed", 0.5, "wrong_type", "/base/seed", "a whole number, not 0.5"),
        ("/base/seed", float("nan"), "not_finite", "/base/seed", "nan is not a number to compute with"),
        ("/base/seed", float("inf"), "not_finite", "/base/seed", "inf"),
        ("/base/seed", 2**70, "out_of_range", "/base/seed", "too large"),
        (
            "/base/data/mixture",
            {"boks": 1},
            "invalid",
            "/base/data/mixture/boks",
            "there are: books, code_python, docs",
        ),
        ("/base/data/mixture", {}, "invalid", "/base/data/mixture", "name at least one of: books"),
        ("/base/data/tokenizer", "bpe-4097", "not_allowed", "/base/data/tokenizer", "did you mean bpe-4096"),
        ("/base/data/tokenizer", "bpe-4096", "invalid", "/base/model/vocab_size", "smaller than the 4096 tokens"),
        ("/base/schedule", {"kind": "cosin"}, "unknown_kind", "/base/schedule/kind", "did you mean cosine?"),
        ("/base/schedule", {}, "unknown_kind", "/base/schedule/kind", "`kind` is missing"),
        ("/base/optimizer", {"kind": "moun", "lr": 1e-3}, "unknown_kind", "/base/optimizer/kind", "did you mean muon?"),
        (
            "/base/model/moe/router",
            {"kind": "topk"},
            "unknown_kind",
            "/base/model/moe/router/kind",
            "did you mean top_k?",
        ),
        (
            "/base/model/moe/router",
            {"kind": "group_limited", "num_groups": 3, "groups_per_token": 1},
            "invalid",
            "/base/model/moe/router/num_groups",
            "router.num_groups=3 does not divide num_experts=4",
        ),
        (
            "/base/model/moe/balancing/0",
            {"kind": "group_balancing_loss", "coefficient": 0.1, "num_groups": 3},
            "invalid",
            "/base/model/moe/balancing/0/num_groups",
            "num_groups=3 does not divide num_experts=4",
        ),
        ("/base/model/moe/router", {"kind": "hash"}, "invalid", "/base/model/moe/balancing", "leave balancing empty"),
        (
            "/base/model/moe/router",
            {"kind": "expert_choice"},
            "invalid",
            "/base/model/moe/balancing/0/kind",
            "every expert takes equally many tokens as it is",
        ),
        (
            "/base/model/moe/router",
            {"kind": "expert_choice", "capacity_factor": 2.5},
            "invalid",
            "/base/model/moe/router/capacity_factor",
            "lower it to at most 2",
        ),
        (
            "/base/model/moe/router",
            {"kind": "expert_choice", "normalize": True},
            "invalid",
            "/base/model/moe/router/normalize",
            "leave it out",
        ),
        ("/base/optimizer", {"lrr": 1e-3}, "missing_field", "/base/optimizer/lr", "'lr' is missing"),
        (
            "/base/optimizer",
            {"kind": "muon", "lr": 1e-3, "expert": {"beta1": 0.5}},
            "unknown_field",
            "/base/optimizer/expert/beta1",
            "no field 'beta1' in base.optimizer.expert",
        ),
        (
            "/base/model/attention/kind",
            "mlx",
            "unknown_kind",
            "/base/model/attention/kind",
            "there is no kind 'mlx'; did you mean mla?",
        ),
        (
            "/base/model/attention/num_kv_heads",
            3,
            "invalid",
            "/base/model/attention/num_heads",
            "num_heads=2 is not a multiple of num_kv_heads=3",
        ),
        (
            "/base/model/attention/windw",
            3,
            "unknown_field",
            "/base/model/attention/windw",
            "did you mean window",
        ),
        (
            "/base/model/moe/balancing/0/coefficient",
            -1,
            "out_of_range",
            "/base/model/moe/balancing/0/coefficient",
            "more",
        ),
        ("/base/model/moe/balancing/0/rate", 1, "unknown_field", "/base/model/moe/balancing/0/rate", "no field 'rate'"),
        ("/base/model", None, "wrong_type", "/base/model", "has to be an object, not null"),
        ("/name", "", "invalid", "/name", "at least 1 character"),
        ("/name", "a\x00b", "text_not_allowed", "/name", "NUL"),
        ("/description", "\ud800", "text_not_allowed", "/description", "surrogate"),
        ("/sampler", {"kind": "bayes"}, "unknown_kind", "/sampler/kind", "no kind 'bayes'"),
        ("/objective", {"domain": "book"}, "unknown_domain", "/objective/domain", "did you mean books?"),
        ("/num_trials", DELETE, "missing_field", "/num_trials", "no end of its own"),
        ("/space/optimizer.lrr", {"choice": [1]}, "unknown_path", "/space/optimizer.lrr", "did you mean lr?"),
        ("/space/optimizer.lr.x", {"choice": [1]}, "unknown_path", "/space/optimizer.lr.x", "is a plain value"),
        (
            "/space/model.moe.balancing.3",
            {"choice": [1]},
            "unknown_path",
            "/space/model.moe.balancing.3",
            "a list of 1",
        ),
        ("/space/optimizer.lr", {"flot": [1, 2]}, "not_a_domain", "/space/optimizer.lr", "did you mean float?"),
        ("/space/optimizer.lr", 0.1, "not_a_domain", "/space/optimizer.lr", "an object with one of the fields"),
        ("/space/optimizer.lr", {"float": [2, 1]}, "invalid", "/space/optimizer.lr/float", "is empty"),
        ("/space/optimizer.lr", {"float": [1, "x"]}, "wrong_type", "/space/optimizer.lr/float/1", "has to be a number"),
        ("/space/optimizer.lr", {"float": [1, 2], "lgo": 1}, "unknown_field", "/space/optimizer.lr/lgo", "mean log?"),
        ("/space/optimizer.lr", {"float": [1, 20]}, "never_valid", "/space/optimizer.lr/float/1", "lr=20"),
        (
            "/space/schedule.final_fraction",
            {"float": [0, 2]},
            "never_valid",
            "/space/schedule.final_fraction/float/1",
            "final_fraction=2",
        ),
        (
            "/space/model.moe.top_k",
            {"choice": [1, "2"]},
            "never_valid",
            "/space/model.moe.top_k/choice/1",
            "never valid",
        ),
        ("/space/model.moe.top_k", {"int": [5, 8]}, "no_valid_point", "/space", "top_k=5 exceeds num_experts=4"),
        ("/scheduler", {"kind": "asha", "min_tokens": 16384}, "out_of_range", "/scheduler/min_tokens", "less than"),
        ("/scheduler", {"kind": "asha", "min_tokens": 9}, "out_of_range", "/scheduler/min_tokens", "512 tokens of one"),
        ("/resources", {"num_workers": 3}, "out_of_range", "/resources/num_workers", "does not divide"),
        ("/resources", {"cpus_per_worker": 3}, "exceeds_cluster", "/resources/cpus_per_worker", "the cluster has 2"),
        ("/resources", {"gpus_per_worker": 1}, "exceeds_cluster", "/resources/gpus_per_worker", "the cluster has 0"),
        ("/base/model/num_layers", 512, "does_not_fit", "/base/model", "the largest node has"),
    ],
)
def test_mistake_is_named_at_its_place(pointer: str, value: Any, code: str, at: str, says: str) -> None:
    capacity = Capacity(nodes=(NodeCapacity(cpus=2, gpus=0, memory_gib=0.5),))
    found = problems_of(changed(pointer, value), capacity)
    assert (found[0].code, found[0].pointer) == (code, at)
    assert says in found[0].message


def test_model_too_large_for_every_gpu_is_refused_however_large_the_hosts_are() -> None:
    nodes = (
        NodeCapacity(cpus=8, gpus=0, memory_gib=1024),
        NodeCapacity(cpus=8, gpus=1, memory_gib=1024, gpu_memory_gib=0.001),
    )
    on_gpu = {"resources": {"gpus_per_worker": 1}}
    (problem,) = problems_of(experiment_document(**on_gpu), Capacity(nodes=nodes))
    assert (problem.code, problem.pointer) == ("does_not_fit", "/base/model")
    assert "the largest GPU has 0.001 GiB" in problem.message
    assert admit(experiment_document(), capacity=Capacity(nodes=nodes)).spec.resources.gpus_per_worker == 0
    # What the host lacks does not matter to a worker on a GPU.
    roomy = NodeCapacity(cpus=8, gpus=1, memory_gib=0.001, gpu_memory_gib=80)
    assert admit(experiment_document(**on_gpu), capacity=Capacity(nodes=(roomy,))).warnings == []


def test_every_mistake_is_named_not_only_the_first() -> None:
    document = changed("/base/model/moe/topk", 2)
    document["base"]["optimizer"]["lr"] = "x"
    document["sampler"] = {"kind": "bayes"}
    assert {problem.pointer for problem in problems_of(document)} == {
        "/base/model/moe/topk",
        "/base/optimizer/lr",
        "/sampler/kind",
    }


def test_unknown_field_lists_the_fields_there_are() -> None:
    (problem,) = problems_of(changed("/base/model/moe/topk", 2))
    assert problem.allowed is not None
    assert "num_experts, top_k, hidden_dim" in problem.allowed


def test_object_without_a_kind_has_the_fields_of_the_default_kind() -> None:
    (problem,) = problems_of(changed("/base/optimizer", {"lr": 1e-3, "momentum": 0.9}))
    assert (problem.pointer, problem.code) == ("/base/optimizer/momentum", "unknown_field")
    assert problem.allowed == "fields: kind, lr, beta1, beta2, eps, weight_decay, dense, router, expert, embedding"
    assert "did you mean momentum" not in problem.message


def test_keys_with_slashes_are_escaped_in_pointers() -> None:
    (problem,) = problems_of(changed("/space", {"a/b~c": {"choice": [1]}}))
    assert problem.pointer == "/space/a~1b~0c"


def test_whole_numbers_may_be_written_as_floats() -> None:
    admitted = admit(changed("/base/loop/budget_tokens", 2e6), capacity=LAPTOP)
    assert admitted.spec.base.loop.budget_tokens == 2_000_000


def test_mistakes_inside_an_option_are_named_there() -> None:
    moe = {"num_experts": 4, "top_k": {"int": [2, "x"]}, "hidden_dim": 32}
    (problem,) = problems_of(experiment_document(space={"model.moe": {"options": {"dense": None, "moe": moe}}}))
    assert problem.pointer == "/space/model.moe/options/moe/top_k/int/1"
    moe = {"num_experts": 4, "topk": {"int": [1, 2]}, "hidden_dim": 32}
    (problem,) = problems_of(experiment_document(space={"model.moe": {"options": {"dense": None, "moe": moe}}}))
    assert problem.pointer == "/space/model.moe/options/moe"
    assert "top_k: Field required" in problem.message


def test_path_inside_another_searched_path_is_refused() -> None:
    space = {"model.moe": {"options": {"dense": None}}, "model.moe.top_k": {"int": [1, 2]}}
    (problem,) = problems_of(experiment_document(space=space))
    assert (problem.code, problem.pointer) == ("overlapping_paths", "/space/model.moe.top_k")


def test_some_points_that_cannot_run_are_a_warning() -> None:
    admitted = admit(experiment_document(space={"model.moe.top_k": {"int": [3, 8]}}), capacity=LAPTOP)
    (warning,) = admitted.warnings
    assert "cannot run and would be infeasible trials" in warning
    assert "exceeds num_experts=4" in warning


@pytest.mark.parametrize(
    ("baseline", "at", "says"),
    [
        ({"name": "b", "set": {"model.moe.topk": 1}}, "/baselines/0/set/model.moe.topk", "did you mean top_k?"),
        ({"name": "b", "set": {"model.moe.top_k": 9}}, "/baselines/0/set", "top_k=9 exceeds"),
        ({"name": "b", "set": {"optimizer.lr": "0.1"}}, "/baselines/0/set", "valid number"),
        ({"name": "b", "set": {"loop.micro_batch_size": 3}}, "/baselines/0/set", "not a multiple"),
        ({"name": "b", "set": {"model.num_layers": 512}}, "/baselines/0/set", "GiB"),
        ({"name": ""}, "/baselines/0/name", "at least 1 character"),
    ],
)
def test_invalid_baseline_is_refused(baseline: dict[str, Any], at: str, says: str) -> None:
    capacity = Capacity(nodes=(NodeCapacity(cpus=2, gpus=0, memory_gib=0.5),))
    found = problems_of(experiment_document(baselines=[baseline]), capacity)
    assert found[0].pointer == at
    assert says in found[0].message


def test_baselines_of_one_name_are_refused() -> None:
    (problem,) = problems_of(experiment_document(baselines=[{"name": "b"}, {"name": "b"}]))
    assert (problem.code, problem.pointer) == ("name_taken", "/baselines/1/name")


@pytest.mark.parametrize(
    ("space", "num_trials", "code", "says"),
    [
        ({"optimizer.lr": {"float": [0.1, 0.2]}}, None, "grid_needs_step", "needs a step"),
        ({"optimizer.lr": {"float": [1e-4, 1.0], "step": 1e-9}}, None, "grid_too_large", "999,900,001 points"),
        (
            {"seed": {"int": [0, 2**31 - 1]}, "loop.budget_tokens": {"int": [1, 10**15]}},
            None,
            "grid_too_large",
            "10^24",
        ),
        ({"seed": {"int": [0, 3]}}, 5, "out_of_range", "exceeds the 4 points"),
    ],
)
def test_grid_is_counted_before_it_is_admitted(
    space: dict[str, Any], num_trials: int | None, code: str, says: str
) -> None:
    found = problems_of(experiment_document(sampler={"kind": "grid"}, space=space, num_trials=num_trials))
    assert found[0].code == code
    assert says in found[0].message


def test_search_of_nothing_is_refused() -> None:
    (problem,) = problems_of(experiment_document(space={}))
    assert problem.code == "empty_space"
    document = experiment_document(space={})
    del document["num_trials"]
    assert admit(document, capacity=None).spec.num_trials is None


def test_tpe_that_only_draws_at_random_is_a_warning() -> None:
    admitted = admit(experiment_document(sampler={"kind": "tpe"}, num_trials=10), capacity=LAPTOP)
    assert "TPE's model is never used" in admitted.warnings[0]


def test_router_of_one_expert_whose_weight_is_always_one_is_a_warning() -> None:
    (warning,) = admit(changed("/base/model/moe/top_k", 1), capacity=None).warnings
    assert "top_k=1 with router.normalize=true" in warning
    weighed = changed("/base/model/moe/top_k", 1)
    weighed["base"]["model"]["moe"]["router"] = {"normalize": False}
    assert admit(weighed, capacity=None).warnings == []


def test_optimizers_and_routers_are_searched_as_options_with_and_without_a_kind() -> None:
    lr = {"float": [1e-4, 1e-2], "log": True}
    space = {
        "optimizer": {"options": {"default": {"lr": lr}, "muon": {"kind": "muon", "lr": lr}}},
        "model.moe.router": {"options": {"default": {"score": "sigmoid"}, "sinkhorn": {"kind": "sinkhorn"}}},
    }
    admitted = admit(experiment_document(space=space), capacity=LAPTOP)
    assert admitted.warnings == []
    point = {
        "optimizer": "muon",
        "optimizer.muon.lr": 0.01,
        "model.moe.router": "default",
    }
    config = resolve(admitted.spec, point)
    assert (config.optimizer.kind, config.optimizer.lr) == ("muon", 0.01)
    assert config.model.moe is not None
    assert config.model.moe.router == TopKRouterConfig(score="sigmoid")


def test_unknown_cluster_skips_the_checks_against_it() -> None:
    admit(experiment_document(resources={"cpus_per_worker": 64, "gpus_per_worker": 8}), capacity=None)


def test_workers_that_fit_in_sum_but_on_no_node_together_are_refused() -> None:
    nodes = tuple(NodeCapacity(cpus=3, gpus=0, memory_gib=64) for _ in range(2))
    base = train_document(loop={"budget_tokens": 16_384, "global_batch_size": 6, "micro_batch_size": 2})
    document = experiment_document(resources={"num_workers": 3, "cpus_per_worker": 2}, base=base)
    (problem,) = problems_of(document, Capacity(nodes=nodes))
    assert (problem.code, problem.pointer) == ("exceeds_cluster", "/resources/num_workers")


class CountingDict(dict[str, Any]):
    """A dict that counts how many of its items are looked at one by one."""

    num_items = 0

    def items(self) -> Any:
        CountingDict.num_items += len(self)
        return super().items()


@pytest.mark.parametrize("wrapped", [False, True])
def test_document_of_many_keys_is_refused_without_looking_at_them(wrapped: bool) -> None:
    CountingDict.num_items = 0
    hostile = CountingDict({f"key{index}": index for index in range(100_000)})
    (problem,) = problems_of({"base": hostile} if wrapped else hostile)
    assert problem.code == "too_large"
    assert CountingDict.num_items == 0


def test_deep_document_is_refused_at_the_limit() -> None:
    document: dict[str, Any] = {}
    inner = document
    for _ in range(100_000):
        inner["a"] = {}
        inner = inner["a"]
    (problem,) = problems_of(document)
    assert problem.code == "too_deep"
    assert problem.pointer == "/a" * 32
    while document:  # taken apart by hand: Python would recurse
        document = document.pop("a", {})


def test_space_of_too_many_inner_parameters_is_refused() -> None:
    inner = [{"int": [1, 2]} for _ in range(300)]
    (problem,) = problems_of(experiment_document(space={"model.moe": {"options": {"many": inner}}}))
    assert (problem.code, problem.pointer) == ("too_large", "/space")


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
PLACES = [
    "/base",
    "/base/model",
    "/base/model/moe",
    "/base/model/moe/balancing",
    "/base/data/mixture",
    "/base/optimizer/lr",
    "/base/seed",
    "/base/loop/budget_tokens",
    "/space",
    "/space/optimizer.lr",
    "/space/model.moe",
    "/baselines",
    "/sampler",
    "/scheduler",
    "/resources",
    "/num_trials",
    "/objective",
    "/name",
]
places = st.sampled_from(PLACES)


@given(document=plain)
def test_any_plain_value_is_answered(document: object) -> None:
    assert problems_of(document)


@given(place=places, value=plain | st.builds(lambda value: {"options": {"a": value}}, plain))
def test_any_value_anywhere_is_admitted_or_answered_with_places(place: str, value: object) -> None:
    problems: list[SpecProblem] = []
    try:
        admit(changed(place, value), capacity=LAPTOP)
    except SpecRejected as rejected:
        problems = rejected.problems
    assert all(problem.pointer == "" or problem.pointer.startswith("/") for problem in problems)
    assert all(problem.message.isprintable() for problem in problems)


def test_weights_to_start_from_are_named_within_the_home() -> None:
    start = {"kind": "checkpoint", "path": "experiments/a/trials/00003/b"}
    admitted = admit(changed("/base/start", start), capacity=LAPTOP)
    assert admitted.spec.base.start.kind == "checkpoint"
    (problem,) = problems_of(changed("/base/start", start | {"path": "/etc"}))
    assert (problem.pointer, problem.code) == ("/base/start/path", "absolute_path")
    (problem,) = problems_of(changed("/base/start", start | {"path": "../../etc"}))
    assert problem.pointer == "/base/start/path"
    baseline = {"name": "tuned", "set": {"start": start | {"path": "/etc"}}}
    (problem,) = problems_of(changed("/baselines", [baseline]))
    assert (problem.pointer, problem.code) == ("/baselines/0/set", "absolute_path")
