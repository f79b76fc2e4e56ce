"""The command `evenload`. Talks REST; what needs torch or Ray runs as a child process, so `evenload list` is quick."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import click

from api.guard import foreign_packages

if TYPE_CHECKING:
    from rich.console import Console

    from api.client import Client
    from api.schemas.control import BulkAnswers
    from trainer.errors import EvenloadError

as_json = click.option("--json", "json_", is_flag=True, help="Print JSON instead of a table.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """The lab bench for small mixture-of-experts language models."""


def main(arguments: list[str] | None = None) -> None:
    """Entry point: checks that our names are ours, then runs the command; errors become one line and a status."""
    foreign = foreign_packages()
    if foreign:
        for problem in foreign:
            click.echo(f"evenload: {problem}", err=True)
        sys.exit(2)
    # Not before the check: it could be the foreign one.
    from trainer.errors import EvenloadError

    try:
        cli(arguments)
    except EvenloadError as error:
        _fail(error)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _fail(error: "EvenloadError") -> NoReturn:
    from api.errors import RequestFailed

    if isinstance(error, RequestFailed) and error.problem.errors:
        from api.tables import problems_table

        click.echo(f"evenload: {error.problem.title}", err=True)
        _console(stderr=True).print(problems_table(error.problem.errors))
    else:
        click.echo(f"evenload: {error}", err=True)
    sys.exit(1)


def _console(*, stderr: bool = False) -> "Console":
    from rich.console import Console

    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        # Into a file or a pipe, nothing is cut off at an imagined 80 columns.
        console = Console(stderr=stderr, highlight=False, width=200)
    return console


def _client() -> "Client":
    from api.client import Client

    return Client()


def _url_of_home(root: Path) -> str:
    from api.address import DEFAULT_URL, known_address

    return known_address(root) or DEFAULT_URL


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))


# Starting and stopping


@cli.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(1, 65535))
@click.option("--allow-host", multiple=True, help="A further name that the Host header may carry.")
@click.option("--no-token", is_flag=True, help="No authentication; only on a loopback address.")
def up(host: str, port: int, allow_host: tuple[str, ...], no_token: bool) -> None:
    """Start (or carry on) everything; Ctrl-C or `evenload down` stops it."""
    from api.foreground import await_ready, running, say_addresses
    from api.supervisor import AlreadyUp, Supervisor, exclusive
    from orchestrator import home

    root = home.home()
    console = _console()
    try:
        with exclusive(root):
            supervisor = Supervisor(root=root, host=host, port=port, allowed_hosts=allow_host, no_token=no_token)
            with running(supervisor, console) as course:
                course.is_done = True
                say_addresses(console, root, supervisor.url)
                console.print("Stop with Ctrl-C or `evenload down`.")
                while True:
                    supervisor.check()
                    time.sleep(0.5)
    except AlreadyUp:
        console.print("evenload is up already.")
        url = _url_of_home(root)
        await_ready(console, url)
        say_addresses(console, root, url)
        console.print("Stop it with `evenload down`.")


@cli.command()
def down() -> None:
    """Stop what `evenload up` or `evenload demo` started."""
    from api.supervisor import stop_running
    from orchestrator import home

    click.echo("Stopped." if stop_running(home.home()) else "Nothing was up.")


@cli.command()
@click.option("--exit", "exit_", is_flag=True, help="Stop everything when the comparison is printed.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(1, 65535))
@click.option("--spec", type=click.Path(path_type=Path), help="Another spec than studies/000-balancing/spec.yaml.")
def demo(exit_: bool, port: int, spec: Path | None) -> None:
    """Start everything, run a real sweep on real text, print the comparison."""
    from api.demo import SPEC
    from api.foreground import await_ready, demonstrate, running
    from api.supervisor import CHECKOUT, AlreadyUp, Supervisor, exclusive
    from orchestrator import home

    root = home.home()
    console = _console()
    spec = spec or CHECKOUT / SPEC
    is_well = False
    try:
        with exclusive(root):
            supervisor = Supervisor(root=root, port=port)
            with running(supervisor, console) as course:
                is_well = demonstrate(console, root, spec, supervisor.url, keep_up=supervisor.check)
                course.is_done = True
                if not exit_:
                    console.print("Stop with Ctrl-C or `evenload down`.")
                while not exit_:
                    supervisor.check()
                    time.sleep(0.5)
    except AlreadyUp:
        url = _url_of_home(root)
        await_ready(console, url)
        is_well = demonstrate(console, root, spec, url)
        console.print("evenload was up before the demo and stays up; stop it with `evenload down`.")
    sys.exit(0 if is_well else 1)


# Experiments


@cli.command()
@click.argument("spec", type=click.Path(path_type=Path))
@click.option("--follow", "follow_", is_flag=True, help="Show the trials until the experiment is over.")
@click.option("--key", help="Idempotency key: the same key and spec give the same experiment.")
@as_json
def submit(spec: Path, follow_: bool, key: str | None, json_: bool) -> None:
    """Submit a SPEC (YAML or JSON); prints the experiment's id."""
    with _client() as client:
        experiment = client.submit(spec, idempotency_key=key)
        if not json_:
            click.echo(experiment.id)
            for warning in experiment.warnings:
                click.echo(f"warning: {warning}", err=True)
        if follow_:
            from api.demo import follow, show_result, went_well

            console = _console(stderr=json_)
            experiment = follow(client, console, experiment.id)
            show_result(client, console, experiment.id)
            if json_:
                _print_json(_shown(client, experiment.id))
            sys.exit(0 if went_well(experiment) else 1)
        if json_:
            _print_json(experiment.model_dump(mode="json"))


@cli.command()
@click.argument("spec", type=click.Path(path_type=Path))
@as_json
def validate(spec: Path, json_: bool) -> None:
    """What submitting a SPEC would mean; stores nothing."""
    from api.errors import SpecRefused

    with _client() as client:
        try:
            validation = client.validate(spec)
        except SpecRefused as error:
            if not json_:
                raise
            _print_json(error.problem.model_dump(mode="json"))
            sys.exit(1)
    if json_:
        _print_json(validation.model_dump(mode="json"))
    else:
        from api.tables import validation_view

        _console().print(validation_view(validation))


@cli.command("list")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 1000))
@as_json
def list_(limit: int, json_: bool) -> None:
    """Experiments, newest first."""
    with _client() as client:
        page = client.experiments(limit=limit)
    if json_:
        _print_json([experiment.model_dump(mode="json") for experiment in page.items])
        return
    from api.tables import experiments_table

    _console().print(experiments_table(page.items))
    if page.next_cursor:
        click.echo(f"(the newest {limit}; more with --limit)", err=True)


@cli.command()
@click.argument("experiment_id")
@as_json
def show(experiment_id: str, json_: bool) -> None:
    """One experiment with its trials."""
    with _client() as client:
        if json_:
            _print_json(_shown(client, experiment_id))
            return
        from api.tables import follow_view

        console = _console()
        experiment = client.experiment(experiment_id)
        console.print(follow_view(experiment, client.trials(experiment_id)))
        for warning in experiment.warnings:
            console.print(f"warning: {warning}", style="yellow")


def _shown(client: "Client", experiment_id: str) -> dict[str, Any]:
    """The experiment, its trials, and each trial's runs."""
    experiment = client.experiment(experiment_id).model_dump(mode="json")
    runs: dict[str, list[Any]] = {}
    for run in client.experiment_runs(experiment_id).items:
        runs.setdefault(run.trial_id, []).append(run.model_dump(mode="json"))
    trials = [trial.model_dump(mode="json") for trial in client.trials(experiment_id)]
    return {**experiment, "trials": [{**trial, "runs": runs.get(trial["id"], [])} for trial in trials]}


@cli.command()
@click.argument("experiment_id")
@click.option("--after", default=0, help="Only events with a larger id.")
@as_json
def watch(experiment_id: str, after: int, json_: bool) -> None:
    """Events of an experiment as they happen, until it is over."""
    from api.tables import event_line

    with _client() as client:
        for event in client.watch(experiment_id, after=after):
            if json_:
                click.echo(event.model_dump_json())
                continue
            at = time.strftime("%H:%M:%S", time.localtime(event.at_ms / 1000))
            click.echo(
                f"{at} {event.id:>6} {event.kind:<22} {event.trial_id or '':<20} {event_line(event.kind, event.data)}"
            )


@cli.command()
@click.argument("experiment_id")
@as_json
def compare(experiment_id: str, json_: bool) -> None:
    """The trials of an experiment side by side, best first."""
    with _client() as client:
        comparison = client.comparison(experiment_id)
    if json_:
        _print_json(comparison.model_dump(mode="json"))
        return
    from api.tables import comparison_view

    _console().print(comparison_view(comparison))


@cli.command()
@click.argument("experiment_id")
@click.option("--min-trials", default=2, show_default=True, type=click.IntRange(2, 1000), help="That share a document.")
@click.option("--everywhere", is_flag=True, help="Count trials of all experiments, not of this one alone.")
@as_json
def spikes(experiment_id: str, min_trials: int, everywhere: bool, json_: bool) -> None:
    """Documents that were in the batches of spikes of several trials."""
    with _client() as client:
        found = client.implicated_documents(experiment_id, min_trials=min_trials, everywhere=everywhere)
    if json_:
        _print_json(found.model_dump(mode="json"))
        return
    from api.implicated import implicated_view

    _console().print(implicated_view(found))


# Control


_ids = click.argument("ids", nargs=-1, required=True)
_deadline = click.option(
    "--deadline",
    "deadline_s",
    type=click.FloatRange(1, 86_400),
    help="Seconds for checkpoints, before runs are killed.",
)


@cli.command()
@_ids
@_deadline
@as_json
def pause(ids: tuple[str, ...], deadline_s: float | None, json_: bool) -> None:
    """Stop experiments for now: running trials write a checkpoint and give their places back."""
    _control("pause", ids, json_, deadline_s=deadline_s)


@cli.command()
@_ids
@as_json
def resume(ids: tuple[str, ...], json_: bool) -> None:
    """Go on with paused experiments."""
    _control("resume", ids, json_)


@cli.command()
@_ids
@_deadline
@as_json
def cancel(ids: tuple[str, ...], deadline_s: float | None, json_: bool) -> None:
    """End experiments: running trials write a checkpoint first."""
    _control("cancel", ids, json_, deadline_s=deadline_s)


@cli.command()
@_ids
@as_json
def kill(ids: tuple[str, ...], json_: bool) -> None:
    """End experiments now, without checkpoints."""
    _control("kill", ids, json_)


@cli.command()
@click.argument("priority", type=click.IntRange(-100, 100))
@_ids
@as_json
def prioritize(priority: int, ids: tuple[str, ...], json_: bool) -> None:
    """Set the PRIORITY of experiments; free places go to the highest first. Below 0: `evenload prioritize -- -5 ID`."""
    _control("prioritize", ids, json_, priority=priority)


def _control(
    verb: Literal["pause", "resume", "cancel", "kill", "prioritize"], ids: tuple[str, ...], json_: bool, **more: Any
) -> None:
    """Does one thing to each experiment, says what came of it, and exits with 1 if one of them could not."""
    given = {name: value for name, value in more.items() if value is not None}
    with _client() as client:
        answers = client.control(verb, ids=ids, **given)
    _say_answers(answers, json_)


def _say_answers(answers: "BulkAnswers", json_: bool) -> None:
    if json_:
        _print_json([answer.model_dump(mode="json") for answer in answers.items])
    for answer in answers.items if not json_ else ():
        if answer.problem is not None:
            click.echo(f"evenload: {answer.problem.detail}", err=True)
        elif answer.trial_id is not None:
            click.echo(answer.trial_id)
        else:
            click.echo(f"{answer.id} is {answer.state}")
    sys.exit(0 if all(answer.ok for answer in answers.items) else 1)


@cli.command()
@click.argument("trials", nargs=-1, required=True)
@_deadline
@as_json
def stop(trials: tuple[str, ...], deadline_s: float | None, json_: bool) -> None:
    """End single TRIALS with what they came to; their experiments go on."""
    more = {} if deadline_s is None else {"deadline_s": deadline_s}
    with _client() as client:
        answers = client.control_trials("stop", ids=trials, **more)
    _say_answers(answers, json_)


@cli.command()
@click.argument("trials", nargs=-1, required=True)
@as_json
def retry(trials: tuple[str, ...], json_: bool) -> None:
    """Try failed TRIALS again, as new trials, whose ids are printed."""
    with _client() as client:
        answers = client.control_trials("retry", ids=trials)
    _say_answers(answers, json_)


@cli.command()
@click.argument("experiment_id")
@click.option("--set", "params", multiple=True, metavar="PARAMETER=VALUE", help="What is not given is drawn at random.")
@click.option("--label", help="The trial's name in tables.")
@click.option("--key", help="Idempotency key: the same key and point give the same trial.")
@as_json
def add(experiment_id: str, params: tuple[str, ...], label: str | None, key: str | None, json_: bool) -> None:
    """Add a point to an experiment by hand, beside its search; prints the trial's id."""
    from trainer.config.fork import parsed_change

    with _client() as client:
        trial = client.add_trial(experiment_id, dict(map(parsed_change, params)), label=label, idempotency_key=key)
    if json_:
        _print_json(trial.model_dump(mode="json"))
    else:
        click.echo(trial.id)


@cli.command()
@as_json
def queue(json_: bool) -> None:
    """Who waits for places of the cluster, and why."""
    with _client() as client:
        found = client.queue()
    if json_:
        _print_json(found.model_dump(mode="json"))
        return
    from api.tables import queue_table

    _console().print(queue_table(found))


@cli.command()
@click.argument("run")
@click.option("--at", "step", required=True, type=click.IntRange(min=0), help="Step of the checkpoint to go on from.")
@click.option("--set", "changes", multiple=True, metavar="PATH=VALUE", help="What differs, e.g. optimizer.lr=1e-4.")
@click.option("--name", help="Of the new experiment.")
@click.option("--key", help="Idempotency key: the same key and fork give the same experiment.")
@click.option("--out", type=click.Path(path_type=Path), help="For a RUN that is a folder: train here, into this one.")
@as_json
def fork(
    run: str, step: int, changes: tuple[str, ...], name: str | None, key: str | None, out: Path | None, json_: bool
) -> None:
    """Go on from a checkpoint of RUN with some values changed, as a new experiment.

    RUN is the id of a run or a trial. With --out it may be a run's folder, too, and trains here, without any service.
    """
    if out is not None:
        from api.trained import trained_folder
        from orchestrator import home

        folder = trained_folder(run, root=home.home(), client=_client)
        given = ["--at", str(step), *(part for change in changes for part in ("--set", change)), "--out", str(out)]
        _become_trainer("fork", str(folder), *given, *(["--json"] if json_ else []))
    from trainer.config.fork import parsed_change

    wanted = dict(map(parsed_change, changes))
    with _client() as client:
        run_id = run
        if run.startswith("trl_"):
            runs = sorted(client.runs(run).items, key=lambda each: each.number)
            if not runs:
                raise click.ClickException(f"trial {run} has no run yet, so it has no checkpoint")
            run_id = runs[-1].id
        experiment = client.fork(run_id, step=step, changes=wanted, name=name, idempotency_key=key)
    if json_:
        _print_json(experiment.model_dump(mode="json"))
        return
    click.echo(experiment.id)
    for warning in experiment.warnings:
        click.echo(f"warning: {warning}", err=True)


@cli.command()
@click.option("--new", is_flag=True, help="Replace the token; counts from the next start of the API.")
@click.option("--owner", help="That of another person, made if it is missing; counts from the next start of the API.")
def token(new: bool, owner: str | None) -> None:
    """Print the API's token and the dashboard's address with it."""
    from api.auth import ensure_owner, ensure_token, replace_token
    from orchestrator import home

    root = home.home()
    path = home.token_path(root)
    if owner is not None:
        path = home.tokens_folder(root) / owner
        try:
            ensure_owner(path.parent, owner)
        except ValueError as error:
            raise click.ClickException(str(error)) from error
    text = replace_token(path) if new else ensure_token(path)
    click.echo(text)
    click.echo(f"{_url_of_home(root)}/?token={text}", err=True)


@cli.command()
@click.argument("experiment_id")
@click.option("--num-trials", required=True, type=click.IntRange(1, 100_000), help="Trials of the search in all.")
@click.option(
    "--space",
    "space_file",
    type=click.Path(path_type=Path),
    help="YAML or JSON: paths and domains that widen the space.",
)
@as_json
def extend(experiment_id: str, num_trials: int, space_file: Path | None, json_: bool) -> None:
    """Queue an ended experiment again with more trials, in the same space or a wider one."""
    from api.documents import read_document

    space = None if space_file is None else read_document(space_file)
    if space is not None and not isinstance(space, dict):
        raise click.ClickException(f"{space_file} has to hold paths with their domains, as `space` in a spec does")
    with _client() as client:
        experiment = client.extend(experiment_id, num_trials=num_trials, space=space)
    if json_:
        _print_json(experiment.model_dump(mode="json"))
    else:
        click.echo(f"{experiment.id} is {experiment.state}, {experiment.num_trials} trials in all")


@cli.command()
@click.argument("experiment_id")
@click.option("--timeout", default=120.0, show_default=True, help="Seconds to wait for one of the trials as they are.")
@as_json
def analysis(experiment_id: str, timeout: float, json_: bool) -> None:
    """What an experiment's trials show: best so far, Pareto front, which parameters matter."""
    with _client() as client:
        answer = client.analysis(experiment_id, timeout_s=timeout)
    if json_:
        _print_json(answer.model_dump(mode="json"))
    elif answer.analysis is None:
        raise click.ClickException(answer.problem or "there is no analysis yet; is the orchestrator up?")
    else:
        from api.analysis_view import analysis_view

        _console().print(analysis_view(answer))


# Not registered: `evenload export` comes here where its options say that an experiment is meant.
@click.command()
@click.argument("experiment_id")
@click.option("--csv", "csv_path", help="A file, or - for the standard output.")
@click.option("--parquet", "parquet_path", type=click.Path(path_type=Path), help="A file.")
@click.option("--optuna", "optuna_url", metavar="URL", help="An Optuna storage, e.g. sqlite:///study.db.")
@click.option("--replace", is_flag=True, help="Write over a study of the same name.")
def export_trials(
    experiment_id: str, csv_path: str | None, parquet_path: Path | None, optuna_url: str | None, replace: bool
) -> None:
    """The trials of an experiment for other tools."""
    from api.exporting import export_experiment

    with _client() as client:
        written = export_experiment(
            client,
            experiment_id,
            csv_path=csv_path,
            parquet_path=parquet_path,
            optuna_url=optuna_url,
            replace=replace,
        )
    for words in written:
        click.echo(f"wrote {words}", err=csv_path == "-")


# Without any service


def _become_trainer(*arguments: str) -> NoReturn:
    """Replaces this process by the trainer's command of these arguments, which calls itself `evenload`, too."""
    from api.supervisor import child_environment
    from trainer.program import PROGRAM_VARIABLE

    environment = child_environment() | {PROGRAM_VARIABLE: "evenload"}
    # -P: a folder called `trainer` where the user happens to be is not ours.
    os.execve(sys.executable, [sys.executable, "-P", "-m", "trainer", *arguments], environment)


def _passed_on(command: str, text: str, *, finds_run: Literal["option", "argument"] | None = None) -> None:
    @cli.command(
        command,
        help=text,
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "allow_interspersed_args": False},
    )
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    def run(arguments: tuple[str, ...]) -> None:
        if command == "export":
            from api.exporting import wants_experiment

            if wants_experiment(arguments):
                export_trials.main(list(arguments), prog_name="evenload export")
        if finds_run is not None:
            from api.trained import spec_option, trained_folder, with_first_run_found, with_run_found
            from orchestrator import home

            def found(name: str) -> Path:
                return trained_folder(name, root=home.home(), client=_client)

            arguments = tuple(
                with_run_found(arguments, found)
                if finds_run == "option"
                else with_first_run_found(arguments, found, flags=("--json", "--help", "--checkpoints"))
            )
            if command == "bundle":
                arguments = (*arguments, *spec_option(arguments))
        _become_trainer(command, *arguments)


_passed_on("train", "One run of a spec, a TrainConfig or a preset into a folder: SPEC --out DIR [--resume].")
_passed_on(
    "params", "Parameters, FLOPs and memory of a spec, a TrainConfig or a preset; alone, of all presets: [SPEC] --json."
)
_passed_on("data", "The embedded corpora; --build-cache cuts them into token shards.")
_passed_on(
    "export",
    "An experiment's trials for other tools: ID --csv FILE, --parquet FILE or --optuna URL. Or a trained model as a "
    "Hugging Face folder: --hf --run RUN --out DIR; RUN is a folder, or the id of a run or trial.",
    finds_run="option",
)
_passed_on("import", "A Hugging Face folder as a start checkpoint: --hf DIR --out DIR.")
_passed_on(
    "replay",
    "Execute a recorded run again and compare bit for bit: RUN [--from STEP] [--to STEP] --json; RUN is a folder, a "
    "bundle, or the id of a run or trial.",
    finds_run="argument",
)
_passed_on(
    "bundle",
    "One archive from which a run can be replayed elsewhere: RUN [--out FILE] [--checkpoints] --json; RUN is a folder, "
    "or the id of a run or trial.",
    finds_run="argument",
)


if __name__ == "__main__":
    main()
