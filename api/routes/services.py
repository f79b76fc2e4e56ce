"""Processes of this installation."""

from fastapi import APIRouter

from api.dependencies import DatabaseOf
from api.schemas.services import ServiceList
from api.services import service_rows

router = APIRouter(tags=["services"])


@router.get("/services", operation_id="list_services")
def list_services(database: DatabaseOf) -> ServiceList:
    """Orchestrator, Ray, MLflow and forwarder as they last reported."""
    with database.read() as work:
        return ServiceList(items=service_rows(work))
