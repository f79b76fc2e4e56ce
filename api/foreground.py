"""`evenload up` and `evenload demo` in the foreground: start, wait, tell where things are, stop when told to."""

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import click
from rich.console import Console

from api.client import Client
from api.demo import follow, show_result, submit, went_well
from api.supervisor import StartFailed, Supervisor, wait_until_ready
from orchestrator import home


def demonstrate(
    console: Console, root: Path, spec: Path, url: str, *, keep_up: Callable[[], None] = lambda: None
) -> bool:
    """Submits the demo's spec (or goes on with it), follows it, prints the comparison; returns whether all went well.

    Args:
        url: where the API answers.
        keep_up: called once a second.
    """
    with Client(url) as client:
        experiment, goes_on = submit(client, root, spec)
        verb = "Carrying on with" if goes_on else "Submitted"
        console.print(f"{verb} experiment {experiment.id} ({experiment.name}) from {spec}.", soft_wrap=True)
        experiment = follow(client, console, experiment.id, tick=keep_up)
        show_result(client, console, experiment.id)
        console.print()
        say_addresses(console, root, url, experiment_id=experiment.id)
        if not went_well(experiment):
            console.print(f"The experiment is {experiment.state}: {experiment.reason or 'see the trials above'}.")
        return went_well(experiment)


class _Stop(BaseException):
    """A signal asked for the end."""


@dataclass
class Course:
    """Whether the command has done what it is for, so that a signal is its ordinary end and no interruption."""

    is_done: bool = False


@contextmanager
def running(supervisor: Supervisor, console: Console) -> Iterator[Course]:
    """Starts the services, waits until they are ready, and stops them at the end, whatever ends it.

    Exits with 1 if the services do not stay up, and as a signal does if one comes before the course is done.
    """
    course = Course()

    def stop(signum: int, _: FrameType | None) -> None:
        raise _Stop(signum)

    before = {name: signal.signal(name, stop) for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    status, problem = 0, None
    try:
        supervisor.start()
        await_ready(console, supervisor.url, supervisor)
        yield course
    except _Stop as asked:
        status = 0 if course.is_done else 128 + int(asked.args[0])
    except StartFailed as error:
        status, problem = 1, str(error)
    finally:
        # Stopping has a deadline of its own; a second Ctrl-C must not cut it short.
        for name in before:
            signal.signal(name, signal.SIG_IGN)
        # The terminal may be what went away.
        with suppress(OSError):
            console.print("Stopping ...")
        is_graceful = supervisor.stop()
        with suppress(OSError):
            if not is_graceful:
                console.print("Something did not end by itself and was killed; nothing recorded is lost.")
            console.print("Everything is stopped; the same command carries on where it was.")
        for name, handler in before.items():
            signal.signal(name, handler)
    if problem is not None:
        click.echo(f"evenload: {problem}", err=True)
    if status:
        sys.exit(status)


def await_ready(console: Console, url: str, supervisor: Supervisor | None = None) -> None:
    """Tells what is being waited for until everything at `url` is ready; raises StartFailed."""
    started = time.monotonic()
    if console.is_terminal:
        with console.status("Starting ...") as status:
            for waiting in wait_until_ready(url, supervisor=supervisor):
                status.update(f"Waiting for {waiting} ... {time.monotonic() - started:.0f} s")
    else:
        said = ""
        for waiting in wait_until_ready(url, supervisor=supervisor):
            if waiting != said:
                console.print(f"Waiting for {waiting} ...")
                said = waiting
    console.print(f"Ready after {time.monotonic() - started:.1f} s.")


def say_addresses(console: Console, root: Path, url: str, *, experiment_id: str | None = None) -> None:
    """Prints where the dashboard (with the token in the address), MLflow and the home are."""
    with Client(url) as client:
        services = {service.name: service for service in client.services().items}
    token_file = home.token_path(root)
    token = f"?token={token_file.read_text().strip()}" if token_file.exists() else ""
    page = "" if experiment_id is None else f"e/{experiment_id}"
    console.print(f"Dashboard  {client.url}/{page}{token}", soft_wrap=True)
    mlflow = services.get("mlflow")
    if mlflow is not None and mlflow.url:
        console.print(f"MLflow     {mlflow.url}", soft_wrap=True)
    console.print(f"Home       {root}", soft_wrap=True)
