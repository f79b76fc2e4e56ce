"""Bundles: one file, the same for the same run, from which the run is replayed where nothing else of it is."""

import gzip
import io
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from tests.support.training import STEP_TOKENS, Finished, run_training, train_config
from trainer.bundle import BundleInvalid, unpack_bundle, write_bundle
from trainer.cli import main
from trainer.config import TrainConfig
from trainer.data.shards import default_cache_dir
from trainer.fork import local_fork
from trainer.replay import Verdict, replay

NUM_STEPS = 12


def config(**sections: Any) -> TrainConfig:
    loop = {"checkpoint_every_tokens": 4 * STEP_TOKENS, "log_every_steps": 3}
    return train_config(num_steps=NUM_STEPS, loop=loop, **sections)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return run_training(config(), tmp_path_factory.mktemp("runs") / "run_7")


def replayed(bundle: Path, folder: Path, **fields: Any) -> Verdict:
    (folder / "unpacked").mkdir(parents=True)
    (folder / "scratch").mkdir()
    unpacked = unpack_bundle(bundle, folder / "unpacked")
    return replay(unpacked, folder / "scratch", cache_folder=default_cache_dir(), **fields)


def names(bundle: Path) -> list[str]:
    with tarfile.open(bundle) as archive:
        return archive.getnames()


def repacked(bundle: Path, out: Path, change: Mapping[str, bytes | None]) -> Path:
    """A copy of a bundle with some files replaced, added, or left out."""
    with tarfile.open(bundle) as archive:
        contents = {entry.name: archive.extractfile(entry).read() for entry in archive}  # type: ignore[union-attr]
    with tarfile.open(out, "w:gz") as archive:
        for name, content in {**contents, **change}.items():
            if content is not None:
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return out


def test_run_is_replayed_from_its_bundle_alone(tmp_path: Path):
    folder = run_training(config(), tmp_path / "run").folder
    bundle = tmp_path / "run.tar.gz"
    write_bundle(folder, bundle)
    shutil.rmtree(folder)
    verdict = replayed(bundle, tmp_path / "elsewhere")
    assert verdict.identical
    assert (verdict.first_step, verdict.last_step, verdict.num_checkpoints) == (1, NUM_STEPS, 3)
    assert verdict.environment == ()


def test_what_is_in_it(finished: Finished, tmp_path: Path):
    bundle = tmp_path / "run.tar.gz"
    files = write_bundle(finished.folder, bundle, spec=b'{"name": "x"}')
    assert sorted({"bundle.json", *files}) == names(bundle)
    named = {"config.json", "environment.json", "packages.txt", "data.json", "spec.json", "requirements.lock"}
    assert named <= files.keys()
    environment = json.loads((finished.folder / "environment.json").read_text())
    assert ("code.patch" in files) == bool(environment["git_dirty"])
    assert "checkpoints/step-00000004/manifest.json" in files
    assert not any(name.endswith(".safetensors") for name in files)
    (tmp_path / "unpacked").mkdir()
    unpacked = unpack_bundle(bundle, tmp_path / "unpacked")
    about = json.loads((unpacked / "bundle.json").read_text())
    assert (about["run"], about["seeds"], about["config_fingerprint"]) == (
        "run_7",
        {"seed": 0},
        config().fingerprint(),
    )
    assert about["git_commit"] == environment["git_commit"]
    assert f"torch=={torch.__version__}" in (unpacked / "packages.txt").read_text().splitlines()
    data = json.loads((unpacked / "data.json").read_text())
    assert set(data["corpora"]) == {"legal", "speeches"}
    assert all(len(corpus["sha256"]) == 64 for corpus in data["corpora"].values())


def test_same_run_gives_the_same_bytes(finished: Finished, tmp_path: Path):
    one, other = tmp_path / "one.tar.gz", tmp_path / "other.tar.gz"
    write_bundle(finished.folder, one)
    copy = shutil.copytree(finished.folder, tmp_path / "copy" / finished.folder.name, copy_function=shutil.copyfile)
    write_bundle(copy, other)
    assert one.read_bytes() == other.read_bytes()


def test_with_its_checkpoints_a_replay_goes_on_from_one(finished: Finished, tmp_path: Path):
    plain, full = tmp_path / "plain.tar.gz", tmp_path / "full.tar.gz"
    write_bundle(finished.folder, plain)
    write_bundle(finished.folder, full, with_checkpoints=True)
    assert replayed(plain, tmp_path / "1", first_step=10).started_from is None
    verdict = replayed(full, tmp_path / "2", first_step=10)
    assert verdict.identical
    assert verdict.started_from == 8


@pytest.mark.parametrize("kind", ["fork", "checkpoint"])
def test_weights_that_a_run_began_with_are_in_its_bundle(finished: Finished, tmp_path: Path, kind: str):
    source = shutil.copytree(finished.folder, tmp_path / "source")
    if kind == "fork":
        started = local_fork(source, step=4, changes={"optimizer.lr": 0.002})
    else:
        started = config(start={"kind": "checkpoint", "path": str(source)})
    folder = run_training(started, tmp_path / "run").folder
    bundle = tmp_path / "run.tar.gz"
    write_bundle(folder, bundle)
    shutil.rmtree(source)
    verdict = replayed(bundle, tmp_path / "elsewhere")
    assert verdict.identical
    assert verdict.num_checkpoints == (2 if kind == "fork" else 3)
    with pytest.raises(BundleInvalid, match=r"start\.path=.* is gone"):
        write_bundle(folder, tmp_path / "late.tar.gz")


def test_tampered_record_is_found_by_the_replay_and_altered_file_before_it(finished: Finished, tmp_path: Path):
    bundle = tmp_path / "run.tar.gz"
    write_bundle(finished.folder, bundle)
    altered = repacked(bundle, tmp_path / "altered.tar.gz", {"data.json": b"{}"})
    with pytest.raises(BundleInvalid, match=r"data\.json does not have the checksum"):
        replayed(altered, tmp_path / "1")
    for name, change in (("more", {"extra.txt": b""}), ("less", {"data.json": None})):
        with pytest.raises(BundleInvalid, match="missing or unknown files"):
            replayed(repacked(bundle, tmp_path / f"{name}.tar.gz", change), tmp_path / name)


@pytest.mark.parametrize("name", ["../outside.txt", "/tmp/outside.txt", "a/b/c/d"])
def test_file_outside_of_the_bundle_is_not_unpacked(finished: Finished, tmp_path: Path, name: str):
    bundle = tmp_path / "run.tar.gz"
    write_bundle(finished.folder, bundle)
    hostile = repacked(bundle, tmp_path / "hostile.tar.gz", {name: b"x"})
    with pytest.raises(BundleInvalid, match="which no bundle has"):
        replayed(hostile, tmp_path / "1" / "2")
    assert not list(tmp_path.rglob("outside.txt"))


@pytest.mark.parametrize("content", [b"", b"not an archive", gzip.compress(b"not a tar")])
def test_file_that_is_no_bundle_is_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "x.tar.gz"
    path.write_bytes(content)
    with pytest.raises(BundleInvalid):
        replayed(path, tmp_path / "1")


def test_truncated_bundle_is_refused(finished: Finished, tmp_path: Path):
    bundle = tmp_path / "run.tar.gz"
    write_bundle(finished.folder, bundle)
    bundle.write_bytes(bundle.read_bytes()[:-200])
    with pytest.raises(BundleInvalid):
        replayed(bundle, tmp_path / "1")


def test_commands_write_a_bundle_and_replay_it(finished: Finished, tmp_path: Path):
    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "trainer", *arguments], capture_output=True, text=True, timeout=120
        )

    bundle = str(tmp_path / "run.tar.gz")
    written = command("bundle", str(finished.folder), "--out", bundle, "--json")
    assert written.returncode == 0, written.stderr
    assert json.loads(written.stdout)["files"].keys() >= {"config.json"}
    verdict = command("replay", bundle, "--json")
    assert verdict.returncode == 0, verdict.stderr
    assert json.loads(verdict.stdout)["identical"] is True
    again = command("bundle", str(finished.folder), "--out", bundle)
    assert again.returncode == 2
    assert "is there already" in again.stderr
    nowhere = str(tmp_path / "nowhere" / "run.tar.gz")
    refused = CliRunner().invoke(main, ["bundle", str(finished.folder), "--out", nowhere])
    assert refused.exit_code == 2
    assert f"{nowhere} was not written: No such file or directory" in refused.stderr
