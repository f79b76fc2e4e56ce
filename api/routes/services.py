"""Processes of this installation."""

from fastapi import APIRouter

from api.dependencies import DatabaseOf
from api.schemas.services import ServiceList

router = APIRouter(tags=["services"])


@router.get("/services", operation_id="list_services")
def list_services(database: DatabaseOf) -> ServiceList:
    """Orchestrator, Ray, MLflow and forwarder as they last reported."""
    raise NotImplementedError
