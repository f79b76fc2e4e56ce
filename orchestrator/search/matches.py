"""How well the baselines that `match` derived agree with the base."""

from typing import NamedTuple

from orchestrator.search.space import baseline_twin
from orchestrator.spec import ExperimentSpec
from trainer.model.matched import QUANTITIES, MatchedTwin


class BaselineMatch(NamedTuple):
    """A derived baseline: its name and what was derived."""

    baseline: str
    twin: MatchedTwin

    @property
    def sentence(self) -> str:
        """The match in words."""
        twin = self.twin
        difference = f"{100 * abs(twin.residual):.2f} % {'more' if twin.residual >= 0 else 'fewer'}"
        return (
            f"Baseline {self.baseline!r}, matched at hidden_dim={twin.hidden_dim}, has {difference} "
            f"{QUANTITIES[twin.match]} than the base ({twin.value:,.0f} and {twin.target:,.0f})."
        )


def baseline_matches(spec: ExperimentSpec) -> tuple[BaselineMatch, ...]:
    """The derived baselines in the order of the spec; raises InfeasiblePoint for one that cannot be."""
    return tuple(
        BaselineMatch(baseline.name, twin)
        for baseline in spec.baselines
        if (twin := baseline_twin(spec, baseline)) is not None
    )
