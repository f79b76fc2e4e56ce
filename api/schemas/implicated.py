"""Documents in the batches of spikes of several trials."""

from api.schemas.wire import Answer


class ImplicatedSpike(Answer):
    """A step of a trial that spiked; loss and gradient norm at one step are one."""

    experiment_id: str
    trial_id: str
    trial_number: int
    run_id: str
    step: int
    metrics: list[str]
    z: float | None
    """Of the first of the metrics, as is `size`."""
    size: float | None
    sample_indices: tuple[int, int]
    """First and last sample of the step's global batch."""


class ImplicatedDocument(Answer):
    """A document, and how far chance alone would go; null where an older version recorded the spike."""

    document_id: str
    chance_of_batch: float | None
    """That a batch drawn at random touches it."""
    expected_trials: float | None
    """With a spike in whose batch it is by chance, given how often each trial spiked."""
    probability: float | None
    """Of being in as many of the different batches that spiked, or more; trials that spiked at one batch count once."""
    probability_any: float | None
    """The same of any document of the data, at most: the probability times the number of documents."""


class ImplicatedItem(Answer):
    """Documents that the very same spikes implicate: nothing recorded tells them apart."""

    documents: list[ImplicatedDocument]
    num_trials: int
    num_spikes: int
    num_batches: int
    """Different batches among the spikes; batches that share a sample count as one."""
    same_batch: bool
    """There is one only: then document, batch and step cannot be told apart."""
    expected_batches: float | None
    """In which so many trials would spike by chance; null unless `same_batch`."""
    spikes: list[ImplicatedSpike]
    text: str | None
    """How a sample with one of the documents begins."""
    summary: str


class ImplicatedDocuments(Answer):
    """What coincides over trials, the documents of most trials first."""

    experiment_id: str
    everywhere: bool
    """Whether trials of all experiments of this installation were looked at."""
    min_trials: int
    num_trials: int
    """That were looked at: all that have trained."""
    num_spiking_trials: int
    num_spikes: int
    num_batches: int
    """Different batches among the spikes."""
    num_orders: int
    """Different orders of the data among the spiking trials."""
    num_truncated: int
    """Spikes whose batches hold further documents that were not recorded."""
    note: str | None
    """What to know of all items."""
    items: list[ImplicatedItem]
