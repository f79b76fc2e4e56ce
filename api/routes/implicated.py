"""Documents that were in the batches of spikes of several trials."""

from typing import Annotated

from fastapi import APIRouter, Query

from api.dependencies import DatabaseOf
from api.problems import NOT_FOUND, problems
from api.schemas.implicated import ImplicatedDocument, ImplicatedDocuments, ImplicatedItem, ImplicatedSpike
from orchestrator.implicated import Implication, implicated_documents
from orchestrator.store.spiking import spiking_trials

router = APIRouter(tags=["telemetry"])

MinTrials = Annotated[int, Query(ge=2, le=1000, description="Least number of trials that a document is listed from.")]
Everywhere = Annotated[bool, Query(description="Trials of all experiments, for documents of this one's spikes.")]


@router.get(
    "/experiments/{experiment_id}/implicated-documents",
    operation_id="list_implicated_documents",
    responses=problems(NOT_FOUND),
)
def list_implicated_documents(
    experiment_id: str, database: DatabaseOf, min_trials: MinTrials = 2, everywhere: Everywhere = False
) -> ImplicatedDocuments:
    """Documents in the batches of spikes of several trials, beside what chance alone would give."""
    with database.read() as work:
        work.experiments.get(experiment_id)
        trials = spiking_trials(work.connection, experiment_id=None if everywhere else experiment_id)
    found = implicated_documents(trials, min_trials=min_trials)
    return ImplicatedDocuments(
        experiment_id=experiment_id,
        everywhere=everywhere,
        min_trials=min_trials,
        num_trials=found.num_trials,
        num_spiking_trials=found.num_spiking_trials,
        num_spikes=found.num_spikes,
        num_batches=found.num_batches,
        num_orders=found.num_orders,
        num_truncated=found.num_truncated,
        note=found.note,
        items=[
            _item(item) for item in found.items if any(trial.experiment_id == experiment_id for trial, _ in item.spikes)
        ],
    )


def _item(item: Implication) -> ImplicatedItem:
    return ImplicatedItem(
        documents=[
            ImplicatedDocument(
                document_id=document.document_id,
                chance_of_batch=document.chance_of_batch,
                expected_trials=document.expected_trials,
                probability=document.probability,
                probability_any=document.probability_any,
            )
            for document in item.documents
        ],
        num_trials=item.num_trials,
        num_spikes=len(item.spikes),
        num_batches=item.num_batches,
        same_batch=item.same_batch,
        expected_batches=item.expected_batches,
        spikes=[
            ImplicatedSpike(
                experiment_id=trial.experiment_id,
                trial_id=trial.trial_id,
                trial_number=trial.number,
                run_id=spike.run_id,
                step=spike.step,
                metrics=list(spike.metrics),
                z=spike.z,
                size=spike.size,
                sample_indices=spike.samples,
            )
            for trial, spike in item.spikes
        ],
        text=item.text,
        summary=item.summary,
    )
