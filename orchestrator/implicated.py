"""Documents that were in the batches of spikes of several trials, and how far chance alone would have gone.

Trials of one experiment usually read the same batches in the same order. Then the same document is the same batch at
the same step, and a coincidence speaks against the batch or the step, not against one of its documents. A document that
is implicated in different batches is evidence about itself. An item says which of the two it is.

The figures of chance take the number of spikes of each trial as given and put their steps anywhere, evenly and
independently. Spikes of one trial cluster, and a schedule has steps at which all trials are fragile: what coincides for
reasons other than a document may be more than they say.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SpikeStep:
    """A step of a trial whose loss or gradient norm, or both, spiked.

    Attributes:
        run_id: that recorded it.
        step: of the trial.
        metrics: that spiked.
        z, size: of the first of them; None if it was not finite.
        samples: first and last index of the batch's samples.
        document_chances: document of the batch -> chance that a batch drawn at random touches it; None: not recorded.
        all_documents: whether these are all documents of the batch.
        num_documents: of all that the trial may read; None: not recorded.
        text: how a sample begins, by document.
    """

    run_id: str
    step: int
    metrics: tuple[str, ...]
    z: float | None
    size: float | None
    samples: tuple[int, int]
    document_chances: dict[str, float | None]
    all_documents: bool = True
    num_documents: int | None = None
    text: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class SpikingTrial:
    """A trial that trained, with or without spikes.

    Attributes:
        order: equal where the samples of one index are equal.
        num_steps: in which a spike would have been found.
        spikes: by step.
    """

    experiment_id: str
    trial_id: str
    number: int
    order: str
    num_steps: int
    spikes: tuple[SpikeStep, ...]


@dataclass(frozen=True, kw_only=True)
class ImplicatedDocument:
    """A document and what chance makes of it; None where it was not recorded how often batches touch it.

    Attributes:
        chance_of_batch: that a batch drawn at random touches it; the largest of the trials'.
        expected_trials: with a spike in whose batch it would be, at that chance.
        probability: of being in so many of the different batches that spiked, or more. Trials that spiked at one batch
            count once: that they did is a fact about the batch.
        probability_any: the same of any document of the data, if all were as frequent: at most.
    """

    document_id: str
    chance_of_batch: float | None
    expected_trials: float | None
    probability: float | None
    probability_any: float | None


@dataclass(frozen=True, kw_only=True)
class Implication:
    """Documents that the very same spikes implicate.

    Attributes:
        documents: sorted; nothing recorded tells them apart.
        spikes: each with its trial, by trial and step.
        num_trials: of the spikes.
        num_batches: different batches of the spikes; batches that share a sample count as one.
        same_batch: whether it is one: then document, batch and step cannot be told apart.
        expected_batches: in which so many trials would spike by chance; None unless `same_batch`.
        text: how a sample with one of the documents begins; None: not recorded.
        summary: in one sentence.
    """

    documents: tuple[ImplicatedDocument, ...]
    spikes: tuple[tuple[SpikingTrial, SpikeStep], ...]
    num_trials: int
    num_batches: int
    same_batch: bool
    expected_batches: float | None
    text: str | None
    summary: str


@dataclass(frozen=True, kw_only=True)
class Implicated:
    """What coincides over some trials.

    Attributes:
        num_trials: that were looked at.
        num_spiking_trials: that have a spike.
        num_spikes: steps of a trial that spiked.
        num_batches: different batches of those.
        num_orders: different orders of the data among the spiking trials.
        num_truncated: spikes whose batches have further documents that were not recorded.
        note: what to know of all items, in one sentence; None: nothing.
        items: those of most trials first.
    """

    num_trials: int
    num_spiking_trials: int
    num_spikes: int
    num_batches: int
    num_orders: int
    num_truncated: int
    note: str | None
    items: tuple[Implication, ...]


def implicated_documents(trials: Sequence[SpikingTrial], *, min_trials: int = 2) -> Implicated:
    """Returns the documents that were in the batch of a spike in at least `min_trials` of the trials."""
    spiking = [trial for trial in trials if trial.spikes]
    by_document: dict[str, list[tuple[SpikingTrial, SpikeStep]]] = defaultdict(list)
    for trial in spiking:
        for spike in trial.spikes:
            for document_id in spike.document_chances:
                by_document[document_id].append((trial, spike))
    by_spikes: dict[tuple[tuple[str, int, int], ...], list[str]] = defaultdict(list)
    for document_id, found in by_document.items():
        if len({trial.trial_id for trial, _ in found}) >= min_trials:
            by_spikes[tuple((trial.trial_id, spike.step, spike.samples[0]) for trial, spike in found)].append(
                document_id
            )
    num_batches = num_places((trial.order, spike.samples) for trial in spiking for spike in trial.spikes)
    items = [
        _implication(sorted(document_ids), by_document[document_ids[0]], trials=trials, num_all_batches=num_batches)
        for document_ids in by_spikes.values()
    ]
    items.sort(key=lambda item: (-item.num_trials, item.same_batch, -len(item.spikes), item.documents[0].document_id))
    orders = [trial.order for trial in spiking]
    return Implicated(
        num_trials=len(trials),
        num_spiking_trials=len(spiking),
        num_spikes=sum(len(trial.spikes) for trial in trials),
        num_batches=num_batches,
        num_orders=len(set(orders)),
        num_truncated=sum(not spike.all_documents for trial in trials for spike in trial.spikes),
        note=_note(orders),
        items=tuple(items),
    )


def at_least(count: int, chances: Iterable[float]) -> float:
    """Returns the probability that `count` or more of independent events happen, each with a chance of its own.

    The tail of the Poisson binomial distribution, by adding one event after the other.
    """
    # happened[k]: exactly k events so far; the last entry: `count` or more.
    happened = [1.0] + [0.0] * count
    for chance in chances:
        for number in range(count, 0, -1):
            stays = happened[number] if number == count else happened[number] * (1.0 - chance)
            happened[number] = stays + happened[number - 1] * chance
        happened[0] *= 1.0 - chance
    return happened[count] if count else 1.0


def num_places(ranges: Iterable[tuple[str, tuple[int, int]]]) -> int:
    """Returns how many places (order of data, first and last sample) there are; those that share a sample are one."""
    number = 0
    last: tuple[str, int] | None = None
    for order, (first, end) in sorted(ranges):
        if last is None or last[0] != order or first > last[1]:
            number += 1
            last = order, end
        else:
            last = order, max(last[1], end)
    return number


def _implication(
    document_ids: Sequence[str],
    found: Sequence[tuple[SpikingTrial, SpikeStep]],
    *,
    trials: Sequence[SpikingTrial],
    num_all_batches: int,
) -> Implication:
    num_trials = len({trial.trial_id for trial, _ in found})
    num_batches = num_places((trial.order, spike.samples) for trial, spike in found)
    expected_batches = None
    if num_batches == 1:
        readers = [trial for trial in trials if trial.order == found[0][0].order]
        chances = [min(1.0, len(trial.spikes) / max(1, trial.num_steps)) for trial in readers]
        expected_batches = max(trial.num_steps for trial in readers) * at_least(num_trials, chances)
    documents = tuple(
        _document(document_id, found, trials=trials, num_batches=num_batches, num_all_batches=num_all_batches)
        for document_id in document_ids
    )
    texts = (spike.text.get(document_id) for document_id in document_ids for _, spike in found)
    return Implication(
        documents=documents,
        spikes=tuple(sorted(found, key=lambda each: (each[0].experiment_id, each[0].number, each[1].step))),
        num_trials=num_trials,
        num_batches=num_batches,
        same_batch=num_batches == 1,
        expected_batches=expected_batches,
        text=next((text for text in texts if text), None),
        summary=_summary(
            documents,
            found,
            trials=f"{num_trials} of {len(trials)} trials",
            batches=f"{num_batches} of the {num_all_batches} different batches that spiked",
            expected_batches=expected_batches,
        ),
    )


def _document(
    document_id: str,
    found: Sequence[tuple[SpikingTrial, SpikeStep]],
    *,
    trials: Sequence[SpikingTrial],
    num_batches: int,
    num_all_batches: int,
) -> ImplicatedDocument:
    recorded = [spike.document_chances[document_id] for _, spike in found]
    known = [chance for chance in recorded if chance is not None]
    if not known:
        return ImplicatedDocument(
            document_id=document_id,
            chance_of_batch=None,
            expected_trials=None,
            probability=None,
            probability_any=None,
        )
    chance = max(known)
    chances = [1.0 - (1.0 - chance) ** len(trial.spikes) for trial in trials]
    probability = at_least(num_batches, [chance] * num_all_batches)
    totals = [spike.num_documents for _, spike in found if spike.num_documents is not None]
    return ImplicatedDocument(
        document_id=document_id,
        chance_of_batch=chance,
        expected_trials=sum(chances),
        probability=probability,
        probability_any=min(1.0, probability * max(totals)) if totals else None,
    )


def _note(orders: Sequence[str]) -> str | None:
    num_sharing = sum(orders.count(order) > 1 for order in orders)
    if not num_sharing:
        return None
    return (
        f"{num_sharing} of the {len(orders)} trials with spikes share their order of the data with another: there the "
        "same document is the same batch at the same place, and what coincides may be the batch or the step."
    )


def _summary(
    documents: Sequence[ImplicatedDocument],
    found: Sequence[tuple[SpikingTrial, SpikeStep]],
    *,
    trials: str,
    batches: str,
    expected_batches: float | None,
) -> str:
    first = documents[0]
    names = first.document_id if len(documents) == 1 else f"{len(documents)} documents ({first.document_id}, ...)"
    verb = "was" if len(documents) == 1 else "were"
    if expected_batches is not None:
        start, end = min(spike.samples[0] for _, spike in found), max(spike.samples[1] for _, spike in found)
        return (
            f"{names} {verb} in one batch (samples {start} to {end}) that spiked in {trials}. "
            "They read it at the same place of the same order, so nothing tells its documents, and its step, apart; "
            f"chance alone would make {expected_batches:.2g} such batches."
        )
    if first.probability is None:
        chance = "how often batches touch it was not recorded"
    else:
        chance = f"chance alone would do as much with p = {first.probability:.2g}"
        if first.probability_any is not None:
            chance += f", for any document of the data at most {first.probability_any:.2g}"
    return f"{names} {verb} in the batch of a spike in {trials}, in {batches}; {chance}."
