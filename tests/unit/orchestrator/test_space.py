"""From a space to parameters, and from a point to a configuration."""

import pytest

from orchestrator.errors import InfeasiblePoint
from orchestrator.search.space import active, baseline_configs, parameters, path_problem, resolve
from tests.support.specs import experiment_spec

MOE = {"num_experts": {"choice": [4, 8]}, "top_k": 2, "hidden_dim": 32}
ROUTER = {"options": {"soft": {"score": "softmax"}, "sigmoid": {"score": "sigmoid", "scale": {"float": [1.0, 2.5]}}}}
CONDITIONAL = {
    "optimizer.lr": {"float": [0.001, 0.01]},
    "model.moe": {"options": {"dense": None, "moe": MOE | {"router": ROUTER}}},
}


def test_parameters_inside_an_option_are_named_by_their_place_and_depend_on_it() -> None:
    space = parameters(experiment_spec(space=CONDITIONAL))
    assert [(parameter.name, parameter.condition) for parameter in space] == [
        ("model.moe", None),
        ("model.moe.moe.num_experts", ("model.moe", "moe")),
        ("model.moe.moe.router", ("model.moe", "moe")),
        ("model.moe.moe.router.sigmoid.scale", ("model.moe.moe.router", "sigmoid")),
        ("optimizer.lr", None),
    ]


def test_order_of_parameters_is_that_of_names_whatever_the_document() -> None:
    forward = parameters(experiment_spec(space=CONDITIONAL))
    backward = parameters(experiment_spec(space=dict(reversed(CONDITIONAL.items()))))
    assert forward == backward


def test_parameter_exists_only_where_its_option_was_chosen() -> None:
    space = parameters(experiment_spec(space=CONDITIONAL))
    point = {"model.moe": "dense", "optimizer.lr": 0.001}
    assert [parameter.name for parameter in space if active(parameter, point)] == ["model.moe", "optimizer.lr"]


def test_point_fills_the_base_and_the_chosen_option() -> None:
    spec = experiment_spec(space=CONDITIONAL)
    dense = resolve(spec, {"model.moe": "dense", "optimizer.lr": 0.002})
    assert dense.model.moe is None
    assert dense.optimizer.lr == 0.002
    moe = resolve(
        spec,
        {
            "model.moe": "moe",
            "model.moe.moe.num_experts": 8,
            "model.moe.moe.router": "sigmoid",
            "model.moe.moe.router.sigmoid.scale": 1.5,
            "optimizer.lr": 0.002,
        },
    )
    assert moe.model.moe is not None
    assert (moe.model.moe.num_experts, moe.model.moe.router.score, moe.model.moe.router.scale) == (8, "sigmoid", 1.5)
    assert moe.data == spec.base.data


def test_point_that_lacks_a_value_or_names_an_unknown_option_is_infeasible() -> None:
    spec = experiment_spec(space=CONDITIONAL)
    with pytest.raises(InfeasiblePoint, match=r"no value for 'optimizer\.lr'"):
        resolve(spec, {"model.moe": "dense"})
    with pytest.raises(InfeasiblePoint, match="no option 'sparse'; there are: dense, moe"):
        resolve(spec, {"model.moe": "sparse", "optimizer.lr": 0.002})


def test_batch_that_the_workers_cannot_share_is_infeasible() -> None:
    spec = experiment_spec(space={"loop.micro_batch_size": {"choice": [4, 8]}}, resources={"num_workers": 2})
    resolve(spec, {"loop.micro_batch_size": 4})
    with pytest.raises(InfeasiblePoint, match="num_workers=2 with micro_batch_size=8"):
        resolve(spec, {"loop.micro_batch_size": 8})


def test_items_of_a_list_are_reached_by_index() -> None:
    spec = experiment_spec(space={"model.moe.balancing.0.coefficient": {"float": [0.1, 0.2]}})
    config = resolve(spec, {"model.moe.balancing.0.coefficient": 0.15})
    assert config.model.moe is not None
    assert config.model.moe.balancing[0].model_dump()["coefficient"] == 0.15


def test_baseline_is_the_base_with_its_own_values() -> None:
    spec = experiment_spec(baselines=[{"name": "dense", "set": {"model.moe": None, "optimizer.lr": 0.009}}])
    ((name, config),) = baseline_configs(spec)
    assert name == "dense"
    assert config.model.moe is None
    assert config.optimizer.lr == 0.009


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("optimizer.lr", None),
        ("data.mixture.books", None),
        ("model.moe.balancing.0.coefficient", None),
        ("optimizer.learning_rate", "optimizer has no field 'learning_rate'"),
        ("", "base has no field ''"),
        ("model.moe.balancing.1", "model.moe.balancing is a list of 1; there is no '1'"),
        ("model.moe.balancing.-1", "there is no '-1'"),
        ("seed.x", "seed is a plain value"),
        ("loop.evaluate_every_tokens.x", "base has loop.evaluate_every_tokens: null"),
        ("model.__class__", "model has no field '__class__'"),
        ("model.model_fields", "model has no field 'model_fields'"),
    ],
)
def test_path_is_checked_against_the_fields_there_are(path: str, says: str | None) -> None:
    problem = path_problem(experiment_spec().base, path)
    if says is None:
        assert problem is None
    else:
        assert problem is not None
        assert says in problem[0]
