"""What a spec can name, what is measured, and the spec's JSON Schema."""

from typing import Any

from fastapi import APIRouter

from api.catalog import catalog, spec_schema
from api.schemas.catalog import Catalog

router = APIRouter(tags=["catalog"])


@router.get("/catalog", operation_id="get_catalog")
def get_catalog() -> Catalog:
    """Metrics with units, corpora, tokenizers, and components with their JSON Schemas."""
    return catalog()


@router.get("/schema/experiment-spec.json", operation_id="get_spec_schema")
def get_spec_schema() -> dict[str, Any]:
    """JSON Schema of an experiment spec, for editors."""
    return spec_schema()
