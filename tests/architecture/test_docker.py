"""The images and compose file, checked statically: no root, no secrets, nothing beyond loopback, all pinned."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

CHECKOUT = Path(__file__).resolve().parents[2]
DOCKER = CHECKOUT / "docker"
DOCKERFILES = sorted(DOCKER.glob("*.Dockerfile"))


def compose() -> dict[str, Any]:
    return yaml.safe_load((DOCKER / "compose.yaml").read_text())


def instructions(path: Path) -> list[str]:
    joined = path.read_text().replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]


def test_there_are_the_services_of_the_design() -> None:
    assert set(compose()["services"]) == {"postgres", "mlflow", "ray-head", "orchestrator", "api"}


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_runs_as_a_user_and_from_a_pinned_base(path: Path) -> None:
    lines = instructions(path)
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users
    assert users[-1] not in {"root", "0"}
    bases = [line.split()[1] for line in lines if line.startswith("FROM ")]
    assert all(re.fullmatch(r"[a-z./-]+:[\w.-]+", base) and not base.endswith(":latest") for base in bases)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_installs_by_the_lock_and_puts_the_checkout_first(path: Path) -> None:
    text = path.read_text()
    installs = re.findall(r"pip install[^&\n]*", text.replace("\\\n", " "))
    assert installs
    assert all("-c requirements.lock" in line or "requirements.lock)" in line for line in installs)
    assert "PYTHONPATH=/app" in text


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_every_copied_path_exists(path: Path) -> None:
    for line in instructions(path):
        if line.startswith("COPY "):
            for source in line.split()[1:-1]:
                assert (CHECKOUT / source).exists(), source


def test_the_api_image_holds_nothing_that_computes() -> None:
    names = set((DOCKER / "api.requirements.txt").read_text().split())
    assert not {name.split("[")[0] for name in names} & {"torch", "ray", "mlflow", "optuna", "triton"}
    declared = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert {name.split("[")[0] for name in names} <= {re.split(r"[\[<>=]", entry)[0] for entry in declared}


def test_images_are_pinned_and_nothing_is_published_beyond_loopback() -> None:
    for name, service in compose()["services"].items():
        assert re.search(r":\d", service["image"]), name
        assert all(str(port).startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert not service.get("privileged"), name
        assert "docker.sock" not in str(service.get("volumes", "")), name
        assert service.get("network_mode") != "host", name


def test_our_containers_drop_all_capabilities() -> None:
    for name, service in compose()["services"].items():
        if service["image"].startswith("evenload-"):
            assert service["cap_drop"] == ["ALL"], name
            assert service["security_opt"] == ["no-new-privileges:true"], name


def test_no_secret_is_written_in_the_files() -> None:
    for name, service in compose()["services"].items():
        for key, value in service.get("environment", {}).items():
            assert not re.search(r"(?i)password|token|secret", key) or str(value).startswith("/run/secrets/"), (
                name,
                key,
            )
    ignored = (CHECKOUT / ".gitignore").read_text().splitlines()
    assert "/docker/secrets/" in ignored
    assert "docker/secrets" in (CHECKOUT / ".dockerignore").read_text().splitlines()


def test_ray_always_asks_for_a_token() -> None:
    assert "RAY_AUTH_MODE=token" in (DOCKER / "worker.Dockerfile").read_text()
    services = compose()["services"]
    for name in ("ray-head", "orchestrator"):
        assert services[name]["environment"]["RAY_AUTH_TOKEN_PATH"] == "/run/secrets/ray_token"


def test_secrets_and_volumes_that_are_used_are_declared() -> None:
    document = compose()
    for service in document["services"].values():
        assert set(service.get("secrets", [])) <= set(document["secrets"])
        named = {volume.split(":")[0] for volume in service.get("volumes", []) if not volume.startswith((".", "/"))}
        assert named <= set(document["volumes"])
