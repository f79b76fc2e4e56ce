"""The application: routes, authentication, limits, errors."""

from fastapi import FastAPI

from api import problems
from api.routes import catalog, events, experiments, health, series, services, session, trials
from api.settings import Settings


def create_app(settings: Settings) -> FastAPI:
    """The ASGI application of one installation."""
    app = FastAPI(title="evenload", version="0.1.0", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.settings = settings
    problems.install(app)
    app.include_router(health.router)
    for module in (experiments, trials, series, events, catalog, services, session):
        app.include_router(module.router, prefix="/v1")
    return app
