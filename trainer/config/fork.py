"""Forks: which values of a config may change while a run goes on from one of its checkpoints.

A fork keeps what the checkpoint holds: weights, optimizer states, what clipping has learned, the place in the data. So
only what gives these no other shape or meaning may change: rates, schedules, coefficients, weights of a mixture, length
and cadence.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError

from trainer.config.start import ForkStartConfig
from trainer.config.train import TrainConfig
from trainer.errors import EvenloadError

FORKABLE = (
    "optimizer.**.{lr,lr_scale,weight_decay,beta1,beta2,eps,momentum}",
    "schedule.**",
    "loop.{budget_tokens,max_grad_norm,log_every_steps,evaluate_every_tokens,checkpoint_every_tokens}",
    "loop.{measure_updates_every_steps,probe_tokens}",
    "loop.clipping.**",
    "loop.skip_spikes.**",
    "loop.on_spike.**",
    "model.moe.balancing.*.{coefficient,update_rate,update,centred,clamp,smoothing}",
    "data.mixture.*",
    "warn_when.**",
    "stop_when.**",
)
"""Dotted paths; `*` stands for one name, `.**` for everything below and the path itself, `{}` for one of several."""

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")
"""What YAML 1.1 takes for text: a number with an exponent and no point."""

_STARTS_ANEW = "start"  # says that this is a fork, and of what


class ForkProblem(NamedTuple):
    """A value that a fork cannot have.

    path: dotted, into the config.
    message: what was given, what is allowed, what to do.
    """

    path: str
    message: str


class ForkRefused(EvenloadError):
    """A fork cannot be what was asked for. `problems` names every field that is wrong."""

    def __init__(self, problems: list[ForkProblem]) -> None:
        self.problems = problems
        super().__init__("; ".join(f"{problem.path}: {problem.message}" for problem in problems))


def fork_problems(parent: TrainConfig, config: TrainConfig, *, step: int) -> list[ForkProblem]:
    """Return why a run under `config` cannot go on from the checkpoint of `step` of a run under `parent`.

    Empty: it can. `start` is not compared: it is where a fork says what it is one of.
    """
    ours, theirs = flat(config.model_dump(mode="json")), flat(parent.model_dump(mode="json"))
    found = [
        ForkProblem(
            path,
            f"{theirs.get(path, '(absent)')} in the run, {ours.get(path, '(absent)')} in the fork; a fork "
            f"keeps the shapes and the data of its checkpoint and may change: {', '.join(FORKABLE)}",
        )
        for path in sorted(ours.keys() | theirs.keys())
        if ours.get(path) != theirs.get(path) and not _may_change(path, is_in_both=path in ours and path in theirs)
    ]
    if config.num_steps <= step:
        found.append(
            ForkProblem(
                "loop.budget_tokens",
                f"{config.loop.budget_tokens} tokens are trained at step {config.num_steps}, and the fork "
                f"begins at step {step}; it has to be more than {step * config.step_tokens}",
            )
        )
    return found


def fork_config(parent: TrainConfig, changes: Mapping[str, Any], *, start: ForkStartConfig) -> TrainConfig:
    """Return the config of a run that goes on from a checkpoint of a run under `parent`, with some values changed.

    Args:
        parent: as the run resolved it.
        changes: dotted path -> value, e.g. `optimizer.lr: 1e-4`.
        start: of the fork.

    Raises:
        ForkRefused: a path is not there, a value is not allowed, or a fork cannot change it.
    """
    document = parent.model_dump(mode="json")
    unknown = [problem for path, value in changes.items() if (problem := _set(document, path, value)) is not None]
    if unknown:
        raise ForkRefused(unknown)
    document["start"] = start.model_dump(mode="json")
    try:
        config = TrainConfig.model_validate(document)
    except ValidationError as error:
        raise ForkRefused(
            [
                ForkProblem(_meant(each["loc"], changes), each["msg"].removeprefix("Value error, "))
                for each in error.errors()
            ]
        ) from error
    problems = fork_problems(parent, config, step=start.step)
    if problems:
        raise ForkRefused(problems)
    return config


def forkable_paths(config: TrainConfig) -> list[str]:
    """Return the dotted paths of a config's values that a fork may change one by one, in the config's order.

    Of a section that may be replaced as a whole its `kind` is left out: another kind needs values of its own, so it
    is given with the section.
    """
    paths = flat(config.model_dump(mode="json"))
    return [
        path
        for path in paths
        if path.rpartition(".")[2] != "kind"
        and not path.startswith(f"{_STARTS_ANEW}.")
        and path != _STARTS_ANEW
        and _may_change(path, is_in_both=True)
    ]


def is_forkable(path: str) -> bool:
    """Return whether a fork may change the value at a dotted path, or the section as a whole that is there."""
    return path != _STARTS_ANEW and not path.startswith(f"{_STARTS_ANEW}.") and _may_change(path, is_in_both=True)


def parsed_change(text: str) -> tuple[str, Any]:
    """Return path and value of `PATH=VALUE`; the value is YAML, and `1e-4` a number.

    Raises:
        ForkRefused: it is none.
    """
    path, sign, value = text.partition("=")
    if not sign or not path:
        raise ForkRefused([ForkProblem(text, "a change is written PATH=VALUE, e.g. optimizer.lr=1e-4")])
    try:
        return path, float(value) if _NUMBER.fullmatch(value) else yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ForkRefused([ForkProblem(path, f"{value!r} is not YAML: {error}")]) from error


def flat(value: object, prefix: str = "") -> dict[str, str]:
    """Return dotted path -> JSON of every leaf."""
    if isinstance(value, dict) and value:
        return {path: leaf for key, item in value.items() for path, leaf in flat(item, f"{prefix}{key}.").items()}
    if isinstance(value, list) and value:
        return {path: leaf for i, item in enumerate(value) for path, leaf in flat(item, f"{prefix}{i}.").items()}
    return {prefix.removesuffix("."): json.dumps(value)}


def _set(document: dict[str, Any], path: str, value: Any) -> ForkProblem | None:
    """Put a value into a document; return what is wrong if there is no such place."""
    *parents, last = path.split(".")
    place: Any = document
    for name in parents:
        place = _inside(place, name)
    if isinstance(place, dict) and last in place:
        place[last] = value
    elif isinstance(place, list) and last.isdigit() and int(last) < len(place):
        place[int(last)] = value
    else:
        there = ", ".join(place) if isinstance(place, dict) else "nothing"
        return ForkProblem(path, f"there is no {path!r} in the run's config; where it should be, there is: {there}")
    return None


def _inside(place: Any, name: str) -> Any:
    if isinstance(place, dict):
        return place.get(name)
    return place[int(name)] if isinstance(place, list) and name.isdigit() and int(name) < len(place) else None


def _meant(location: Sequence[int | str], changes: Mapping[str, Any]) -> str:
    """The changed path that a refusal is about: its location names kinds of sections, too."""
    parts = [str(part) for part in location]
    for path in changes:
        remaining = iter(parts)
        if all(name in remaining for name in path.split(".")):
            return path
    return ".".join(parts) or next(iter(changes), "start")


def _may_change(path: str, *, is_in_both: bool) -> bool:
    if path == _STARTS_ANEW or path.startswith(f"{_STARTS_ANEW}."):
        return True
    for pattern, rule in _RULES:
        if rule.fullmatch(path):
            # Whole sections may come and go; a corpus, a balancing method or a rate may not.
            return is_in_both or pattern.endswith(".**")
    return False


def _compiled(pattern: str) -> re.Pattern[str]:
    text = re.escape(pattern)
    text = text.replace(re.escape(".**."), r"\.(?:.+\.)?").replace(re.escape(".**"), r"(?:\..+)?")
    text = text.replace(re.escape("*"), "[^.]+")
    text = re.sub(r"\\\{([^}]*)\\\}", lambda match: f"(?:{match[1].replace(',', '|')})", text)
    return re.compile(text)


_RULES = [(pattern, _compiled(pattern)) for pattern in FORKABLE]
