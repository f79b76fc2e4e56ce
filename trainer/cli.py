"""`python -m trainer`: one run without any service, the size of a model, and what data there are."""

import json
import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import click
import yaml
from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar
from rich.table import Table

from trainer.config import TrainConfig
from trainer.config.run import LookaheadProbe, RunReport, RunRequest, RunSummary
from trainer.config_file import ConfigRejected, find_config
from trainer.errors import EvenloadError
from trainer.interop.commands import export_command, import_command
from trainer.model.size import model_size
from trainer.presets import preset_names
from trainer.replay_command import bundle_command, replay_command
from trainer.reporter import STOP_FILE
from trainer.size_tables import presets_view, size_figures, size_table
from trainer.telemetry.progress import Progress

CONFIG_ARGUMENT = click.argument("config_name", metavar="CONFIG")
JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


class Rejected(click.ClickException):
    """What the caller gave cannot be used."""

    exit_code = 2


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Train one model, or look at what a config means."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")


main.add_command(export_command)
main.add_command(import_command)
main.add_command(replay_command)
main.add_command(bundle_command)


OUT_OPTION = click.option(
    "--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder of the run."
)
THREADS_OPTION = click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=None,
    help="Torch threads; default: OMP_NUM_THREADS, or the machine's cores.",
)
DEVICE_OPTION = click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
CACHE_OPTION = click.option(
    "--cache", type=click.Path(file_okay=False, path_type=Path), default=None, help="Folder of token caches."
)


@main.command()
@CONFIG_ARGUMENT
@OUT_OPTION
@click.option("--resume", is_flag=True, help="Continue from the newest sound checkpoint in the folder.")
@click.option("--any-code", is_flag=True, help="With --resume: even if other code wrote the checkpoint.")
@THREADS_OPTION
@DEVICE_OPTION
@CACHE_OPTION
@JSON_OPTION
def train(
    config_name: str,
    out: Path,
    resume: bool,
    any_code: bool,
    threads: int | None,
    device: str,
    cache: Path | None,
    as_json: bool,
) -> None:
    """Train the model of CONFIG (a train config, an experiment spec's base, or a preset's name) into --out.

    Ctrl-C writes a checkpoint and ends with status 130; --resume then goes on as if nothing had happened.
    """
    config = _config(config_name)
    if not resume and (out / "config.json").exists():
        raise Rejected(f"{out} already holds a run; add --resume to continue it, or choose another folder")
    # Here and not above: `params` and `data` answer without loading torch.
    import torch

    from trainer.checkpoint_manifest import newest_valid_checkpoint
    from trainer.data.shards import default_cache_dir
    from trainer.worker import run

    out.mkdir(parents=True, exist_ok=True)
    (out / STOP_FILE).unlink(missing_ok=True)
    checkpoint = newest_valid_checkpoint(out.absolute()) if resume else None
    request = RunRequest(
        run_id=out.name,
        config=config,
        folder=str(out.absolute()),
        resume_from=None if checkpoint is None else str(checkpoint),
        any_code=any_code,
        cache_folder=str((cache or default_cache_dir()).absolute()),
        use_gpu=device == "cuda" or (device == "auto" and torch.cuda.is_available()),
        num_threads=threads or torch.get_num_threads(),
    )
    console = Console(stderr=True)
    console.print(_opening(config, checkpoint))
    reports: list[RunReport] = []
    with _stop_on_signal(out, console) as received, _progress_bar(console, config) as bar:
        task = bar.add_task("starting", total=config.num_steps, figures="")

        def on_progress(progress: Progress) -> None:
            bar.update(task, completed=progress.step, description="training", figures=_figures(progress))

        run(request, reports.append, on_progress=on_progress)
        bar.update(task, completed=reports[-1].step)
    _end(reports[-1], received=received, console=console, config_name=config_name, out=out, as_json=as_json)


@main.command()
@click.argument("run", metavar="RUN", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--at", "step", required=True, type=click.IntRange(min=0), help="Step of the checkpoint to go on from.")
@click.option(
    "--set", "changes", multiple=True, metavar="PATH=VALUE", help="A value that differs, e.g. optimizer.lr=1e-4."
)
@OUT_OPTION
@THREADS_OPTION
@DEVICE_OPTION
@CACHE_OPTION
@JSON_OPTION
@click.pass_context
def fork(context: click.Context, run: Path, step: int, changes: tuple[str, ...], out: Path, **options: Any) -> None:
    """Train on from a checkpoint of RUN (its folder), under values of its own, into --out.

    Weights, optimizer states and the place in the data are the checkpoint's. The config is left in OUT/fork.yaml;
    `evenload train OUT/fork.yaml --out OUT --resume` goes on with it after an interruption.
    """
    from trainer.config.fork import parsed_change
    from trainer.fork import local_fork

    try:
        config = local_fork(run.absolute(), step=step, changes=dict(map(parsed_change, changes)))
    except EvenloadError as error:
        raise Rejected(str(error)) from error
    if (out / "config.json").exists():
        raise Rejected(f"{out} already holds a run; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    path = out / "fork.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
    context.invoke(train, config_name=str(path), out=out, resume=False, any_code=False, **options)


@main.command()
@click.argument("config_name", metavar="[CONFIG]", required=False)
@JSON_OPTION
def params(config_name: str | None, as_json: bool) -> None:
    """Print the parameters, FLOPs and memory of the model in CONFIG; nothing is built.

    CONFIG is a train config, an experiment spec or a preset's name; without one, all presets are listed.
    """
    if config_name is None:
        presets = {name: size_figures(_config(name)) for name in preset_names()}
        click.echo(json.dumps(presets)) if as_json else Console().print(presets_view(presets))
        return
    figures = size_figures(_config(config_name))
    click.echo(json.dumps(figures)) if as_json else Console().print(size_table(config_name, figures))


@main.command()
@click.option("--build-cache", is_flag=True, help="Tokenise every corpus with every tokenizer now.")
@click.option("--cache", type=click.Path(file_okay=False, path_type=Path), default=None, help="Folder of token caches.")
@JSON_OPTION
def data(build_cache: bool, cache: Path | None, as_json: bool) -> None:
    """List the corpora that come with evenload."""
    from trainer.config.data import CORPORA, TOKENIZER_VOCAB_SIZES
    from trainer.data.manifest import Split, corpus_manifest
    from trainer.data.shards import default_cache_dir, ensure_shard

    if build_cache:
        folder = cache or default_cache_dir()
        for tokenizer in TOKENIZER_VOCAB_SIZES:
            for name in CORPORA:
                tokens = [ensure_shard(name, split, tokenizer, folder).num_tokens for split in ("train", "validation")]
                click.echo(f"{name} with {tokenizer}: {tokens[0]:,} training, {tokens[1]:,} held-out tokens", err=True)
    manifests = [corpus_manifest(name) for name in CORPORA]
    if as_json:
        rows = [
            {
                "name": corpus.name,
                "sha256": corpus.sha256,
                "licence": corpus.licence,
                "splits": {split.value: asdict(size) for split, size in corpus.splits.items()},
            }
            for corpus in manifests
        ]
        click.echo(json.dumps(rows))
        return
    table = Table("corpus", "documents", "training bytes", "held-out bytes", "licence")
    for corpus in manifests:
        training, held_out = corpus.splits[Split.TRAIN], corpus.splits[Split.VALIDATION]
        documents = f"{training.num_documents + held_out.num_documents:,}"
        table.add_row(corpus.name, documents, f"{training.num_bytes:,}", f"{held_out.num_bytes:,}", corpus.licence)
    Console().print(table)


def _config(name: str) -> TrainConfig:
    try:
        return find_config(name)
    except ConfigRejected as error:
        raise Rejected(str(error)) from error


def _opening(config: TrainConfig, checkpoint: Path | None) -> str:
    size = model_size(config.model)
    start = "from the beginning" if checkpoint is None else f"from {checkpoint.name}"
    return (
        f"{size.total / 1e6:.2f}M parameters, {size.active / 1e6:.2f}M active; {config.num_steps} steps of "
        f"{config.step_tokens:,} tokens, {start}"
    )


def _figures(progress: Progress) -> str:
    parts = [f"loss {progress.loss:.3f}", f"{progress.tokens_per_s:,.0f} tokens/s"]
    if progress.max_violation is not None:
        parts.append(f"MaxVio {progress.max_violation:.2f} (layer {progress.max_violation_layer})")
    if progress.num_spikes:
        parts.append(f"{progress.num_spikes} spikes")
    return "  ".join(parts)


def _progress_bar(console: Console, config: TrainConfig) -> ProgressBar:
    return ProgressBar(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TaskProgressColumn(),
        TextColumn(f"of {config.num_steps} steps  {{task.fields[figures]}}"),
        TimeRemainingColumn(),
        console=console,
    )


@contextmanager
def _stop_on_signal(out: Path, console: Console) -> Iterator[list[int]]:
    """Turn the first SIGINT or SIGTERM into a request to stop, a second one kills; yield the list of those received."""
    received: list[int] = []

    def on_signal(number: int, _: FrameType | None) -> None:
        if received:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        received.append(number)
        (out / STOP_FILE).touch()
        console.print("stopping after this step, with a checkpoint; once more to end at once")

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        (out / STOP_FILE).unlink(missing_ok=True)


def _end(last: RunReport, *, received: list[int], console: Console, config_name: str, out: Path, as_json: bool) -> None:
    """Print how the run ended and exit with the status that says so."""
    if last.kind == "failed":
        raise click.ClickException(f"the run failed at step {last.step} ({last.cause}): {last.message}")
    if last.kind == "stopped":
        console.print(
            f"stopped at step {last.step}; to go on: evenload train {config_name} --out {out} --resume", soft_wrap=True
        )
        sys.exit(128 + received[0] if received else 0)
    assert last.summary is not None
    if as_json:
        click.echo(last.summary.model_dump_json())
    else:
        _print_summary(Console(), last.summary)
        console.print(f"telemetry and checkpoints are in {out}")


def _print_summary(console: Console, summary: RunSummary) -> None:
    table = Table("domain", "bits/byte at first", "at the end", title="held-out text")
    for domain, value in summary.bits_per_byte.items():
        table.add_row(domain, f"{summary.initial_bits_per_byte[domain]:.3f}", f"{value:.3f}")
    console.print(table)
    if summary.domain_information is not None:
        num_layers = len(summary.domain_information["trained"])
        layers = Table("I(domain; expert), bits", *(f"MoE layer {number}" for number in range(num_layers)))
        for name, values in summary.domain_information.items():
            layers.add_row(name, *(f"{value:.3f}" for value in values))
        console.print(layers)
        console.print(
            f"worst layer {summary.worst_max_violation_layer}: MaxVio {summary.worst_max_violation:.2f}; "
            f"dead experts at most {summary.max_dead_fraction:.0%} of a layer"
        )
    if summary.lookahead is not None:
        _print_lookahead(console, summary.lookahead)
    console.print(
        f"final loss {summary.final_loss:.3f} nats/token, {summary.num_spikes} spikes, "
        f"{summary.tokens_per_s:,.0f} tokens/s over {summary.training_duration_s:.1f} s of training in "
        f"{summary.precision}"
    )


def _print_lookahead(console: Console, probe: LookaheadProbe) -> None:
    table = Table("tokens that compete", "held-out loss", "experts/token", title="routing that sees later tokens")
    for routed in (*probe.by_chunk_size, *([] if probe.causal is None else [probe.causal])):
        if routed.chunk_size is None:
            competing = "none (causal)"
        elif routed.chunk_size == probe.trained_chunk_size:
            competing = f"{routed.chunk_size:,} (as trained)"
        else:
            competing = f"{routed.chunk_size:,}"
        table.add_row(competing, f"{routed.loss:.3f}", f"{routed.experts_per_token:.2f}")
    console.print(table)
    if probe.predictor_accuracy is not None:
        accuracy = ", ".join(f"{value:.1%}" for value in probe.predictor_accuracy)
        console.print(f"the predictor is right about {accuracy} of pairs of token and expert, layer by layer")
    figures = "training loss" if probe.causal is not None else "training loss and the figures on held-out text"
    console.print(f"in training the router saw later tokens: the {figures} may be better than text can be generated")
