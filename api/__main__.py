"""`python -m api`: the API server of one home, in the foreground."""

import argparse
import sys

import uvicorn

from api.address import publish_address
from api.app import create_app
from api.auth import ensure_token, owner_tokens
from api.settings import Settings
from orchestrator import home
from orchestrator.store.migrate import upgrade
from orchestrator.store.session import database_url

CONFIGURATION_ERROR = 78
"""EX_CONFIG of sysexits.h."""


def settings_from(arguments: list[str]) -> Settings:
    """The settings that command line arguments and the home folder give; raises ValueError if they are unsafe."""
    parser = argparse.ArgumentParser(prog="python -m api", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument(
        "--allow-host", action="append", default=[], help="a further name that the Host header may carry"
    )
    parser.add_argument("--no-token", action="store_true", help="no authentication; only with a loopback address")
    given = parser.parse_args(arguments)
    root = home.home()
    return Settings(
        home=root,
        database_url=database_url(root),
        token=None if given.no_token else ensure_token(home.token_path(root)),
        owners=owner_tokens(home.tokens_folder(root)),
        host=given.host,
        port=given.port,
        allowed_hosts=tuple(given.allow_host),
    )


def main() -> None:
    """Serves until SIGINT or SIGTERM."""
    try:
        settings = settings_from(sys.argv[1:])
    except ValueError as error:
        sys.stderr.write(f"evenload: {error}\n")
        sys.exit(CONFIGURATION_ERROR)
    upgrade(settings.database_url)
    publish_address(settings.home, settings.url)
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_level="info",
        access_log=False,
        server_header=False,
        timeout_keep_alive=5,
        # Event streams end by themselves only with their experiment.
        timeout_graceful_shutdown=2,
    )


if __name__ == "__main__":
    main()
