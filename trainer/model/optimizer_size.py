"""How many numbers an optimizer keeps, in closed form. Torch-free.

Letters: M rows, N columns of a matrix.
"""

import math
from collections.abc import Callable
from typing import Any

from trainer.config.model import ModelConfig
from trainer.config.optimizers import AdamWRule, ByPatternConfig, ByRoleConfig, OptimizerConfig, OptimizerRule
from trainer.config.parameters import ParameterShape
from trainer.config.patterns import first_match
from trainer.config.trained import TrainedPart, trained_parameters


def optimizer_values(config: OptimizerConfig, model: ModelConfig, trained: TrainedPart = "all") -> int:
    """Returns the numbers in the optimizer's state over the trained part of a model, step counts left out.

    Per M x N matrix, of a stack for each expert: AdamW 2*M*N, Lion and Muon M*N, Adafactor M + N, SOAP and Shampoo
    2*M*N + 2*M*M + 2*N*N, without the squares of a side longer than `max_dim`. Per element of a vector: Lion and
    Adafactor 1, all others 2, as AdamW. Muon, SOAP and Shampoo leave routers and embeddings to AdamW.
    """
    total = 0
    for name, parameter in trained_parameters(model, trained).items():
        rule = _rule_of(config, name, parameter)
        total += _VALUES[rule.kind](rule, parameter)
    return total


def _rule_of(config: OptimizerConfig, name: str, parameter: ParameterShape) -> OptimizerConfig | OptimizerRule:
    """Returns what updates a parameter: a config of one rule has the fields of the rule."""
    if isinstance(config, ByRoleConfig):
        return getattr(config, parameter.role)
    if isinstance(config, ByPatternConfig):
        matched = first_match(name, [group.pattern for group in config.groups])
        return config.default if matched is None else config.groups[matched].rule
    is_hidden = parameter.role in ("dense", "expert")
    return config if is_hidden or config.kind not in ("muon", "soap", "shampoo") else AdamWRule()


def _adamw(rule: Any, parameter: ParameterShape) -> int:
    del rule
    return 2 * math.prod(parameter.shape)


def _lion(rule: Any, parameter: ParameterShape) -> int:
    del rule
    return math.prod(parameter.shape)


def _muon(rule: Any, parameter: ParameterShape) -> int:
    return (1 if _is_matrix(parameter) else 2) * math.prod(parameter.shape)


def _adafactor(rule: Any, parameter: ParameterShape) -> int:
    *stack, rows, columns = parameter.shape if len(parameter.shape) > 1 else (*parameter.shape, 0)
    return math.prod(stack) * (rows + columns)


def _preconditioned(rule: Any, parameter: ParameterShape) -> int:
    values = 2 * math.prod(parameter.shape)
    if _is_matrix(parameter):
        *stack, rows, columns = parameter.shape
        values += math.prod(stack) * sum(2 * side**2 for side in (rows, columns) if side <= rule.max_dim)
    return values


def _is_matrix(parameter: ParameterShape) -> bool:
    """Whether a rule for matrices takes the parameter: a matrix, or a stack of experts' (see `split_matrices`)."""
    return len(parameter.shape) in ((3, 4) if parameter.role == "expert" else (2,))


# One entry per kind of rule; tests/contracts checks that none is missing.
_VALUES: dict[str, Callable[[Any, ParameterShape], int]] = {
    "adafactor": _adafactor,
    "adamw": _adamw,
    "lion": _lion,
    "muon": _muon,
    "shampoo": _preconditioned,
    "soap": _preconditioned,
}
