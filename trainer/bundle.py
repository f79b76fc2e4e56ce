"""Bundles: one archive from which a run can be replayed on another machine.

    bundle.json             format, the run's name, seeds, fingerprints, and sha256 of every other file
    config.json, environment.json, code.patch, packages.txt, *.jsonl, progress.json      as in the run's folder
    telemetry/              what a replay is compared with
    checkpoints/step-N/     manifest.json: checksums of weights and optimizer states; all files if asked for
    data.json               the corpora of the mixture, with checksums: they come with evenload and are cut anew
    requirements.lock       of the commit that ran
    spec.json               of the experiment, if there is one
    start/                  the weights that the run began with, if they were not new

A gzipped tar, and the same bytes for the same run: sorted names, no times, no owners.
"""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from trainer.checkpoint_manifest import CHECKPOINTS_FOLDER, MANIFEST_FILE, checkpoints_of, newest_valid_checkpoint
from trainer.code_state import file_at_commit
from trainer.config import TrainConfig
from trainer.data.manifest import corpus_manifest
from trainer.durable import commit, temporary_name
from trainer.errors import EvenloadError
from trainer.recorded_run import RecordedRun, open_run
from trainer.run_folder import CONFIG_FILE, ENVIRONMENT_FILE, PACKAGES_FILE, PATCH_FILE
from trainer.start.place import recorded_start_folder
from trainer.telemetry.chunks import TELEMETRY_FOLDER

FORMAT_VERSION = 1
BUNDLE_FILE, DATA_FILE, SPEC_FILE, LOCK_FILE = "bundle.json", "data.json", "spec.json", "requirements.lock"
START_FOLDER = "start"

MAX_BYTES = 2**36
"""Most bytes that an archive may unpack to."""

_OF_THE_RUN = (CONFIG_FILE, ENVIRONMENT_FILE, PATCH_FILE, PACKAGES_FILE, "progress.json")


class BundleInvalid(EvenloadError):
    """A file is no bundle, or not a whole one."""


def write_bundle(
    run_folder: Path, out: Path, *, spec: bytes | None = None, with_checkpoints: bool = False
) -> dict[str, str]:
    """Write the bundle of a run and return the sha256 of each file in it.

    Args:
        run_folder: of the run.
        out: the archive; must not exist.
        spec: the experiment's document, JSON.
        with_checkpoints: put all files of its checkpoints in, so that a replay can go on from one.

    Raises:
        NotRecorded: there is no run in the folder.
        BundleInvalid: the weights that the run began with are not where its config says.
        FileExistsError: `out` is there already.
        OSError: the disk failed.
    """
    recorded = open_run(run_folder)
    contents = dict(_contents(recorded, spec=spec, with_checkpoints=with_checkpoints))
    files = {name: hashlib.sha256(_bytes(source)).hexdigest() for name, source in sorted(contents.items())}
    config = recorded.config
    contents[BUNDLE_FILE] = _json(
        {
            "format_version": FORMAT_VERSION,
            "run": run_folder.resolve().name,
            "config_fingerprint": config.fingerprint(),
            "data_fingerprint": recorded.environment.get("data_fingerprint"),
            "git_commit": recorded.environment.get("git_commit"),
            "seeds": {"seed": config.seed},
            "files": files,
        }
    )
    if out.exists():
        raise FileExistsError(f"{out} is there already")
    unfinished = temporary_name(out)
    with (
        unfinished.open("wb") as file,
        # No name and no time in the header: the same run gives the same bytes.
        gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0, compresslevel=6) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for name in sorted(contents):
            content = _bytes(contents[name])
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.mtime = len(content), 0o644, 0
            archive.addfile(entry, io.BytesIO(content))
    commit(unfinished, out)
    return files


def unpack_bundle(path: Path, folder: Path) -> Path:
    """Unpack a bundle into an empty folder, check every byte of it, and return the folder: it is a run's, to replay.

    Raises:
        BundleInvalid: it is no bundle, or something of it is missing, added or altered.
    """
    try:
        with tarfile.open(path, mode="r:gz") as archive:
            total = 0
            for entry in archive:
                total += entry.size
                if not entry.isfile() or not _is_plain(entry.name) or total > MAX_BYTES:
                    raise BundleInvalid(f"{path} holds {entry.name!r}, which no bundle has")
                archive.extract(entry, folder, filter="data")
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, OSError) as error:
        raise BundleInvalid(f"{path} is no bundle, or not a whole one: {error}") from error
    try:
        content: dict[str, Any] = json.loads((folder / BUNDLE_FILE).read_text(encoding="utf-8"))
        version, files = content["format_version"], dict(content["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleInvalid(f"{path} has no sound {BUNDLE_FILE}: {error}") from error
    if version != FORMAT_VERSION:
        raise BundleInvalid(f"{path} has format version {version}, this code reads {FORMAT_VERSION}")
    present = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    del present[BUNDLE_FILE]
    if present.keys() != files.keys():
        wrong = sorted(present.keys() ^ files.keys())
        raise BundleInvalid(f"{path} has missing or unknown files: {', '.join(wrong)}")
    for name, file in present.items():
        if hashlib.sha256(file.read_bytes()).hexdigest() != files[name]:
            raise BundleInvalid(f"{path}: {name} does not have the checksum of {BUNDLE_FILE}; it was altered")
    return folder


def with_start_found(recorded: RecordedRun) -> TrainConfig:
    """Return the config of a run with the place here of the weights it began with: in its folder, if that is a
    bundle's, or where they were."""
    start = recorded.config.start
    if start.kind == "scratch":
        return recorded.config
    bundled = recorded.folder / START_FOLDER
    found = bundled if bundled.is_dir() else recorded_start_folder(start, recorded.folder)
    if found is None:
        return recorded.config
    moved = start.model_copy(update={"path": str(found.absolute())})
    return recorded.config.model_copy(update={"start": moved})


def _contents(
    recorded: RecordedRun, *, spec: bytes | None, with_checkpoints: bool
) -> Iterator[tuple[str, Path | bytes]]:
    """Yield name and content of every file but bundle.json."""
    folder, config = recorded.folder, recorded.config
    for path in [*(folder / name for name in _OF_THE_RUN), *folder.glob("*.jsonl")]:
        if path.is_file():
            yield path.name, path
    for path in (folder / TELEMETRY_FOLDER).glob("*.parquet"):
        yield f"{TELEMETRY_FOLDER}/{path.name}", path
    for checkpoint in checkpoints_of(folder):
        for path in checkpoint.iterdir() if with_checkpoints else [checkpoint / MANIFEST_FILE]:
            if path.is_file():
                yield f"{CHECKPOINTS_FOLDER}/{checkpoint.name}/{path.name}", path
    yield DATA_FILE, _json(_data(config))
    lock = file_at_commit(recorded.environment.get("git_commit"), LOCK_FILE)
    if lock is not None:
        yield LOCK_FILE, lock
    if spec is not None:
        yield SPEC_FILE, spec
    for path in _start_files(recorded):
        yield f"{START_FOLDER}/{path.name}", path


def _data(config: TrainConfig) -> dict[str, Any]:
    corpora = {name: corpus_manifest(name) for name in config.data.mixture}
    return {
        "tokenizer": config.data.tokenizer,
        "seq_len": config.data.seq_len,
        "corpora": {
            name: {"sha256": corpus.sha256, "weight": config.data.mixture[name], "licence": corpus.licence}
            for name, corpus in corpora.items()
        },
    }


def _start_files(recorded: RecordedRun) -> list[Path]:
    start = recorded.config.start
    if start.kind == "scratch":
        return []
    folder = recorded_start_folder(start, recorded.folder) or Path(start.path)
    if (folder / CHECKPOINTS_FOLDER).is_dir():
        folder = newest_valid_checkpoint(folder) or folder
    files = [path for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
    if not files:
        raise BundleInvalid(f"start.path={start.path} is gone, and the run cannot be replayed without it; restore it")
    return files


def _bytes(source: Path | bytes) -> bytes:
    return source.read_bytes() if isinstance(source, Path) else source


def _json(content: object) -> bytes:
    return json.dumps(content, sort_keys=True, indent=1).encode()


def _is_plain(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and len(path.parts) <= 3
