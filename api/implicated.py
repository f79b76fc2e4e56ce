"""The documents of several trials' spikes, for the terminal."""

from rich.console import Group, RenderableType
from rich.text import Text

from api.schemas.implicated import ImplicatedDocuments, ImplicatedItem

MAX_DOCUMENTS = 5
"""Documents of an item that are named; of the others their number."""


def implicated_view(found: ImplicatedDocuments) -> RenderableType:
    """Every item in a sentence, with its spikes and documents below it."""
    place = "of all experiments" if found.everywhere else "of this experiment"
    head = f"{found.num_spikes} spikes in {found.num_spiking_trials} of {found.num_trials} trials {place}"
    parts: list[RenderableType] = [Text(head, style="bold")]
    if found.note:
        parts.append(Text(found.note, style="yellow"))
    if found.num_truncated:
        parts.append(Text(f"of {found.num_truncated} batches not all documents were recorded", style="dim"))
    if not found.items:
        parts.append(Text(f"No document was in spikes of {found.min_trials} trials or more."))
    for item in found.items:
        parts += [Text(f"\n{item.summary}"), *_details(item, everywhere=found.everywhere)]
    return Group(*parts)


def _details(item: ImplicatedItem, *, everywhere: bool) -> list[Text]:
    spikes = (
        (f"{spike.experiment_id} " if everywhere else "") + f"trial {spike.trial_number} step {spike.step}"
        for spike in item.spikes
    )
    named = [document.document_id for document in item.documents[:MAX_DOCUMENTS]]
    if len(item.documents) > MAX_DOCUMENTS:
        named.append(f"{len(item.documents) - MAX_DOCUMENTS} more")
    lines = [Text(f"  {', '.join(spikes)}", style="dim"), Text(f"  {', '.join(named)}", style="dim")]
    if item.text:
        lines.append(Text(f"  {' '.join(item.text.split())}", style="italic dim"))
    return lines
