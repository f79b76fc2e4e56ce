"""The application: routes, authentication, limits, errors."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI
from starlette.middleware.gzip import GZipMiddleware

from api import problems, webui
from api.auth import authenticate
from api.catalog import version
from api.gate import Gate
from api.routes import (
    catalog,
    control,
    events,
    experiments,
    forks,
    health,
    implicated,
    search,
    series,
    services,
    session,
    trials,
)
from api.settings import Settings
from orchestrator.store.session import Database, open_database


def create_app(settings: Settings, database: Database | None = None) -> FastAPI:
    """The ASGI application of one installation.

    Args:
        database: where the store is; by default the one that the settings name, which has to be migrated already.
    """
    opened = open_database(settings.database_url) if database is None else database

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        if database is None:
            opened.close()

    app = FastAPI(
        title="evenload", version=version(), docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan
    )
    app.state.settings = settings
    app.state.database = opened
    app.state.streams = set()
    problems.install(app)
    app.include_router(health.router)
    app.include_router(session.router, prefix="/v1")
    # Everything else asks for a token, whatever is added to these routers later.
    for module in (experiments, control, search, trials, forks, series, implicated, events, catalog, services):
        app.include_router(module.router, prefix="/v1", dependencies=[Depends(authenticate)])
    webui.install(app, settings.webui)
    # Added last, so outermost: the gate sees every request first.
    app.add_middleware(GZipMiddleware, minimum_size=2048, compresslevel=4)
    app.add_middleware(Gate, settings=settings)
    return app
