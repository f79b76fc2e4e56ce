"""The commands `export` and `import` of `python -m trainer`."""

import json
from pathlib import Path
from typing import cast, get_args

import click

from trainer.errors import EvenloadError
from trainer.interop import ARCHITECTURES

FOLDER = click.Path(file_okay=False, path_type=Path)
JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a sentence.")


class Refused(click.ClickException):
    """The model cannot be exchanged, or its files are not sound."""

    exit_code = 2


@click.command("export")
@click.option("--hf", is_flag=True, required=True, help="As a Hugging Face folder: safetensors, config, tokenizer.")
@click.option(
    "--run",
    "source",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A run's folder (its newest checkpoint), one checkpoint, or a start checkpoint.",
)
@click.option("--out", required=True, type=FOLDER, help="New folder to write.")
@click.option(
    "--architecture", type=click.Choice(list(ARCHITECTURES)), help="Refuse any other; default: the one that fits."
)
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True)
@click.option(
    "--max-positions", type=click.IntRange(min=1), help="max_position_embeddings; default: data.seq_len of the run."
)
@JSON_OPTION
def export_command(
    hf: bool,
    source: Path,
    out: Path,
    architecture: str | None,
    dtype: str,
    max_positions: int | None,
    as_json: bool,
) -> None:
    """Write a trained model as a folder that transformers' AutoModelForCausalLM loads.

    Exportable is what one of the architectures of --architecture computes (docs/interop.md); anything else is refused
    with what stands in the way.
    """
    del hf  # the only format; the option says so in the command
    # Here and not above: `params` and `data` answer without loading torch.
    from trainer.interop.exporting import DType, export_hugging_face

    assert dtype in get_args(DType)
    try:
        exported = export_hugging_face(
            source,
            out,
            architecture=architecture,
            dtype=cast(DType, dtype),
            max_position_embeddings=max_positions,
        )
    except EvenloadError as error:
        raise Refused(str(error)) from error
    if as_json:
        facts = {"folder": str(exported.folder), "model_type": exported.model_type, "origin": exported.origin}
        click.echo(json.dumps(facts | {"architecture": exported.class_name, "num_bytes": exported.num_bytes}))
        return
    click.echo(f"{exported.origin} is in {out} as {exported.class_name}, {exported.num_bytes / 1e6:,.1f} MB of weights")


@click.command("import")
@click.option(
    "--hf",
    "folder",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder with config.json and safetensors, as save_pretrained writes it or the hub has it.",
)
@click.option("--out", required=True, type=FOLDER, help="New folder for the start checkpoint.")
@JSON_OPTION
def import_command(folder: Path, out: Path, as_json: bool) -> None:
    """Read a Hugging Face folder into a start checkpoint: weights, model.json, and a train.yaml to edit.

    `evenload train` goes on from it, as train.yaml says; so can any config whose start.path is the folder.
    """
    from trainer.interop.importing import TRAIN_FILE, import_hugging_face
    from trainer.model.size import model_size

    try:
        imported = import_hugging_face(folder, out)
    except EvenloadError as error:
        raise Refused(str(error)) from error
    size = model_size(imported.start.model)
    if as_json:
        facts = {"folder": str(out), "model_type": imported.model_type, "tokenizer": imported.start.tokenizer}
        counts = {"total": size.total, "active": size.active, "num_left_out": imported.num_left_out}
        click.echo(json.dumps(facts | counts))
        return
    click.echo(
        f"{imported.start.origin}: {size.total / 1e6:,.2f}M parameters, {size.active / 1e6:,.2f}M active, are in {out}"
    )
    if imported.num_left_out:
        click.echo(f"{imported.num_left_out} tensors were left out: they predict further tokens or follow from others")
    if (out / TRAIN_FILE).is_file():
        click.echo(f"a training config to edit: {out / TRAIN_FILE} (evenload params {out / TRAIN_FILE})")
    else:
        click.echo(
            f"no {TRAIN_FILE}: the vocabulary of {imported.start.model.vocab_size} is smaller than any tokenizer's"
        )
    if imported.start.tokenizer is None:
        click.echo("its tokenizer is not one of ours: in our data its embeddings stand for other text", err=True)
