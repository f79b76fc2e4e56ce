"""The commands `replay` and `bundle` of `python -m trainer`."""

import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from trainer.errors import EvenloadError

if TYPE_CHECKING:
    from trainer.replay import EnvironmentDifference, Verdict

DIVERGED = 1
MAX_SHOWN_CHARACTERS = 120


class ReplayRefused(click.ClickException):
    """There is nothing to replay, or it could not be executed."""

    exit_code = 2


@click.command("replay")
@click.argument("run", metavar="RUN", type=click.Path(exists=True, path_type=Path))
@click.option("--from", "first_step", type=click.IntRange(min=1), help="First step to compare; default: the first.")
@click.option("--to", "last_step", type=click.IntRange(min=1), help="Last step to compare; default: the last.")
@click.option("--threads", type=click.IntRange(min=1), help="Torch threads; default: as many as the run had.")
@click.option("--workers", type=click.IntRange(min=1), help="Workers, on this machine; default: as many as it had.")
@click.option("--device", type=click.Choice(["recorded", "cpu", "cuda"]), default="recorded", show_default=True)
@click.option("--cache", type=click.Path(file_okay=False, path_type=Path), help="Folder of token caches.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of sentences.")
def replay_command(
    run: Path,
    first_step: int | None,
    last_step: int | None,
    threads: int | None,
    workers: int | None,
    device: str,
    cache: Path | None,
    as_json: bool,
) -> None:
    """Execute a recorded RUN (its folder, or a bundle) again and compare, step by step and bit for bit.

    With --from, the replay goes on from the newest sound checkpoint before that step, else from the run's beginning.
    Ends with status 0 if everything is identical, 1 if not.
    """
    # Here and not above: other commands answer without loading torch.
    from trainer.bundle import unpack_bundle
    from trainer.data.shards import default_cache_dir
    from trainer.replay import replay

    console = Console(stderr=True, highlight=False)
    with tempfile.TemporaryDirectory(prefix="evenload-replay-") as temporary, console.status("starting") as status:
        scratch, unpacked = Path(temporary, "run"), Path(temporary, "bundle")
        scratch.mkdir()
        unpacked.mkdir()
        try:
            verdict = replay(
                unpack_bundle(run, unpacked) if run.is_file() else run.absolute(),
                scratch,
                first_step=first_step,
                last_step=last_step,
                cache_folder=(cache or default_cache_dir()).absolute(),
                num_threads=threads,
                num_workers=workers,
                use_gpu=None if device == "recorded" else device == "cuda",
                on_environment=lambda differences: _warn(console, differences),
                on_progress=lambda at: status.update(f"step {at.step}"),
            )
        except EvenloadError as error:
            raise ReplayRefused(str(error)) from error
    click.echo(json.dumps(verdict_figures(verdict))) if as_json else _say(Console(highlight=False), verdict)
    sys.exit(0 if verdict.identical else DIVERGED)


@click.command("bundle")
@click.argument("run", metavar="RUN", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="The archive; default: RUN's name.tar.gz.")
@click.option("--spec", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Of the experiment, JSON.")
@click.option("--checkpoints", is_flag=True, help="Put the checkpoints in, so that a replay can go on from one.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a sentence.")
def bundle_command(run: Path, out: Path | None, spec: Path | None, checkpoints: bool, as_json: bool) -> None:
    """Write one archive of RUN (its folder) from which it can be replayed on another machine."""
    from trainer.bundle import write_bundle

    archive = out or Path(f"{run.resolve().name}.tar.gz")
    try:
        document = None if spec is None else spec.read_bytes()
        files = write_bundle(run.absolute(), archive, spec=document, with_checkpoints=checkpoints)
    except FileExistsError as error:
        raise ReplayRefused(f"{archive} is there already; choose another --out") from error
    except OSError as error:
        raise ReplayRefused(f"{archive} was not written: {error.strerror} ({error.filename})") from error
    except EvenloadError as error:
        raise ReplayRefused(str(error)) from error
    if as_json:
        click.echo(json.dumps({"bundle": str(archive), "files": files}))
    else:
        size = archive.stat().st_size
        click.echo(f"{archive}: {len(files)} files, {size / 1e6:,.2f} MB; `evenload replay {archive}` replays it")


def verdict_figures(verdict: "Verdict") -> dict[str, object]:
    """Return the verdict as JSON values."""
    difference = verdict.difference
    return {
        "identical": verdict.identical,
        "first_step": verdict.first_step,
        "last_step": verdict.last_step,
        "started_from": verdict.started_from,
        "num_checkpoints": verdict.num_checkpoints,
        "difference": None if difference is None else difference._asdict(),
        "environment": [each._asdict() for each in verdict.environment],
    }


def _warn(console: Console, differences: "tuple[EnvironmentDifference, ...]") -> None:
    for name, recorded, here in differences:
        console.print(f"not as recorded: {name} was {recorded}, is {here} here", style="yellow", soft_wrap=True)


def _say(console: Console, verdict: "Verdict") -> None:
    start = "the beginning" if verdict.started_from is None else f"the checkpoint of step {verdict.started_from}"
    if verdict.difference is None:
        console.print(
            f"identical: learning rate, loads, loss and gradient norm of the steps {verdict.first_step} to "
            f"{verdict.last_step}, bit for bit, from {start}; weights and optimizer states too at "
            f"{verdict.num_checkpoints} checkpoints",
            soft_wrap=True,
        )
        return
    difference = verdict.difference
    layer = "" if difference.layer is None else f" of layer {difference.layer}"
    console.print(f"diverged at step {difference.step}: {difference.quantity}{layer}, from {start}", soft_wrap=True)
    console.print(f"  recorded {_shown(difference.recorded)}\n  replayed {_shown(difference.replayed)}", soft_wrap=True)
    if not verdict.environment:
        console.print("the environment is as recorded: the code, the data or the record itself is another")
        return
    table = Table("not as recorded", "then", "here")
    for name, recorded, here in verdict.environment:
        table.add_row(name, str(recorded), str(here))
    console.print(table)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[: MAX_SHOWN_CHARACTERS - 3]}..."
