"""Extending an ended experiment: more trials, in the same space or in a wider one, with everything it has learned."""

from typing import Any

from orchestrator.admission import Admitted, admit
from orchestrator.capacity import Capacity
from orchestrator.errors import SpecProblem, SpecRejected
from orchestrator.parsing import parse_domain
from orchestrator.samplers import BruteForceSampler, GridSampler
from orchestrator.schedulers import PBTScheduler
from orchestrator.screening import pointer, shown
from orchestrator.search.draw import holds
from orchestrator.search.grid import AnyDomain, num_search_trials
from orchestrator.search.space import DOMAIN
from orchestrator.search.warm_start import value_at
from orchestrator.spec import ChoiceDomain, ExperimentSpec, FloatDomain, IntDomain, OptionsDomain, domain_kind


def extended(
    spec: ExperimentSpec,
    *,
    document: dict[str, Any],
    num_trials: int,
    space: dict[str, Any],
    capacity: Capacity | None,
) -> Admitted:
    """The spec that an ended experiment goes on with.

    Args:
        spec: the present one.
        document: what the user sent for it; the changes are put into a copy.
        num_trials: trials of the search in all, those that it has made included.
        space: dotted path -> domain, in place of the present one or beside it. Every trial there is has to lie in it.
        capacity: as for `admit`.

    Raises:
        SpecRejected: with pointers into `{"num_trials": ..., "space": ...}`.
    """
    problems: list[SpecProblem] = []
    num_before = num_search_trials(spec)
    if num_trials <= num_before:
        problems.append(
            SpecProblem(
                pointer="/num_trials",
                code="out_of_range",
                message=f"num_trials={num_trials} is the number of trials in all, and the search has made {num_before}",
                given=num_trials,
                allowed=f"more than {num_before}",
            )
        )
    if isinstance(spec.scheduler, PBTScheduler):
        problems.append(
            SpecProblem(
                pointer="/num_trials",
                code="fixed_population",
                message="num_trials of a pbt experiment is its population, whose members go on side by side; others "
                "could not join what has ended; submit another experiment, or fork a trial",
                given=num_trials,
            )
        )
    if spec.synchronous and num_before % spec.batch_size:
        problems.append(
            SpecProblem(
                pointer="/num_trials",
                code="partial_batch",
                message=f"the last batch of the synchronous experiment has {num_before % spec.batch_size} of "
                f"{spec.batch_size} trials and was decided with these; submit another experiment",
                given=num_trials,
            )
        )
    if space and isinstance(spec.sampler, GridSampler | BruteForceSampler):
        problems.append(
            SpecProblem(
                pointer="/space",
                code="fixed_grid",
                message=f"the points of the {spec.sampler.kind} sampler are numbered over the whole space, so a wider "
                "one would repeat some and leave others out; submit another experiment",
            )
        )
    for path in sorted(space):
        domain, found = parse_domain(space[path], ("space", path))
        problems += found
        if domain is not None and (why := _not_wider(spec, path, domain)) is not None:
            problems.append(
                SpecProblem(pointer=pointer(("space", path)), code="not_wider", message=why, given=shown(space[path]))
            )
    if problems:
        raise SpecRejected(problems)
    changed = spec.model_dump(mode="json")
    changed |= {"num_trials": num_trials, "space": changed["space"] | space}
    admitted = admit(changed, capacity=capacity)
    sent = document | {"num_trials": num_trials, "space": document.get("space", {}) | space}
    return Admitted(spec=admitted.spec, document=sent, warnings=admitted.warnings)


def is_extended_to(spec: ExperimentSpec, *, num_trials: int, space: dict[str, Any]) -> bool:
    """True if the spec says already what extending it so would make it say."""
    if spec.num_trials != num_trials or not space.keys() <= spec.space.keys():
        return False
    parsed = {path: parse_domain(space[path], ("space", path))[0] for path in space}
    return all(domain == spec.space[path] for path, domain in parsed.items())


def covers(new: AnyDomain, old: AnyDomain) -> bool:
    """True if every value of `old`, and inside of options every point, is one of `new` too, on the same scale."""
    if isinstance(new, IntDomain) and isinstance(old, IntDomain):
        within = new.int[0] <= old.int[0] and old.int[1] <= new.int[1]
        return within and new.log == old.log and (old.int[0] - new.int[0]) % new.step == 0 == old.step % new.step
    if isinstance(new, FloatDomain) and isinstance(old, FloatDomain):
        within = new.float[0] <= old.float[0] and old.float[1] <= new.float[1]
        if not within or new.log != old.log or (new.step is not None and old.step is None):
            return False
        return new.step is None or all(holds(new, value) for value in (old.float[0], old.float[0] + (old.step or 0)))
    if isinstance(new, ChoiceDomain) and isinstance(old, ChoiceDomain):
        return all(holds(new, value) for value in old.choice)
    if isinstance(new, OptionsDomain) and isinstance(old, OptionsDomain):
        return all(
            name in new.options and _covers_value(new.options[name], value) for name, value in old.options.items()
        )
    return False


def _covers_value(new: Any, old: Any) -> bool:
    """Likewise for what stands in an option: the same but for its domains, each of which covers."""
    if domain_kind(old) is not None:
        return domain_kind(new) is not None and covers(DOMAIN.validate_python(new), DOMAIN.validate_python(old))
    if isinstance(old, dict) and isinstance(new, dict):
        return old.keys() == new.keys() and all(_covers_value(new[key], old[key]) for key in old)
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(_covers_value, new, old))
    return type(old) is type(new) and old == new


def _not_wider(spec: ExperimentSpec, path: str, domain: AnyDomain) -> str | None:
    """Why trials of the present space would not lie in one with this domain; None if they all do."""
    if path in spec.space:
        if covers(domain, spec.space[path]):
            return None
        present = spec.space[path].model_dump(exclude_defaults=True)
        return f"{path} was searched in {present}, which has to lie in the new domain"
    if isinstance(domain, OptionsDomain):
        return f"{path} was not searched, so the trials there are have no option of it; widen what is searched"
    value = value_at(spec.base.model_dump(mode="json"), path)
    return None if holds(domain, value) else f"{path} is {value!r} in all trials there are, which the new domain lacks"
