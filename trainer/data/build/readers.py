"""Reads the source documents of each domain out of the unpacked packages.

A source document is what its author wrote as one thing: a module, a chapter, an address, a page, a section, a licence.
Readers drop only what is not text of the domain and say so where they do; every one of them yields in sorted order.
"""

import json
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from trainer.data.build.rdata import string_vectors


class SourceDocument(NamedTuple):
    """One document as found: `id` is unique and stable within its domain, `source` names package and version."""

    id: str
    text: str
    source: str


def read_standard_library(source: str) -> Iterator[SourceDocument]:
    """Yield the modules of the running interpreter's standard library, without its tests.

    Also left out: character tables (`encodings`), help topics stored as one string (`pydoc_data`) and the file that
    records how this very interpreter was compiled (`_sysconfigdata*`), which differs between machines.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    left_out = {"test", "tests", "idle_test", "site-packages", "encodings", "pydoc_data", "lib-dynload"}
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if left_out.isdisjoint(relative.parts) and not path.name.startswith("_sysconfigdata"):
            yield SourceDocument(relative.as_posix(), path.read_text(encoding="utf-8"), source)


_CHAPTER = re.compile(r"^ *chapter +([ivxlc]+|\d+)\.?$", re.IGNORECASE)
_VOLUME = re.compile(r"^ *volume +[ivx]+\.?$|^ *(the end|finis)\.?$", re.IGNORECASE)
_WRAPPED = re.compile(r"(?<=[^\n])\n(?=[^\n])")


def read_austen(folder: Path, source: str) -> Iterator[SourceDocument]:
    """Yield the chapters of Jane Austen's six novels, without title pages, wrapped lines joined to paragraphs."""
    database = folder / "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
    for lines in string_vectors(database.read_bytes()):
        novel = next(line for line in lines if line).strip().lower().replace(" ", "-")
        starts = [number for number, line in enumerate(lines) if _CHAPTER.match(line)]
        for chapter, (start, end) in enumerate(zip(starts, [*starts[1:], len(lines)], strict=True), start=1):
            body = "\n".join(line.strip() for line in lines[start:end] if not _VOLUME.match(line))
            yield SourceDocument(f"{novel}/{chapter:02d}", _WRAPPED.sub(" ", body), source)


def read_moby_dick(folder: Path, source: str) -> Iterator[SourceDocument]:
    """Yield the chapters of Moby-Dick; the package's `data.txt` repeats all of them and is not read."""
    for path in sorted((folder / "package/data").glob("chapter_*.txt")):
        number = path.stem.removeprefix("chapter_")
        yield SourceDocument(f"moby-dick/{number.zfill(3)}", path.read_text(encoding="utf-8"), source)


def read_addresses(folder: Path, source: str) -> Iterator[SourceDocument]:
    """Yield the State of the Union addresses, each a single paragraph as published in the package."""
    for path in sorted((folder / "package/data").glob("*.txt")):
        yield SourceDocument(path.stem, path.read_text(encoding="utf-8"), source)


def read_django_docs(folder: Path, source: str) -> Iterator[SourceDocument]:
    """Yield Django's reStructuredText pages without the release notes, of which many repeat one another."""
    (root,) = folder.glob("django-*/docs")
    for path in sorted(root.rglob("*.txt")):
        relative = path.relative_to(root)
        if relative.parts[0] not in ("releases", "_theme"):
            yield SourceDocument(relative.with_suffix("").as_posix(), path.read_text(encoding="utf-8"), source)


_PROOF = re.compile(r"\$=[^$]*\$\.")
_SIGNATURE = re.compile(r"\s*\((?:Contributed|Revised|Proof\s+shortened|Proof\s+revised)\s+by\s+[^()]*\)")
_DISCOURAGED = re.compile(r"\s*\((?:New\s+usage|Proof\s+modification)\s+is\s+discouraged\.\)")
_HEADING = re.compile(r"\n *(?=\$\(\n *(?:#\*#\*|=-=-|-\.-\.)\S*\n *([^\n]+)\n)")


def read_metamath(folder: Path, source: str) -> Iterator[SourceDocument]:
    """Yield the sections of `set.mm`: definitions, theorems and their English comments.

    Removed: the compressed proofs (`$= ... $.`), which are strings of step codes, and the signatures and dates in
    comments.
    """
    text = (folder / "usr/share/metamath/databases/set.mm").read_text(encoding="ascii")
    for pattern, replacement in ((_PROOF, "$."), (_SIGNATURE, ""), (_DISCOURAGED, "")):
        text = pattern.sub(replacement, text)
    headings = list(_HEADING.finditer(text))
    ends = [*(heading.start() for heading in headings[1:]), len(text)]
    for number, (heading, end) in enumerate(zip(headings, ends, strict=True)):
        title = re.sub(r"\W+", "-", heading[1].lower()).strip("-")
        yield SourceDocument(f"{number:04d}-{title[:60]}", text[heading.end() : end], source)


def read_licences(folder: Path, source: str) -> Iterator[SourceDocument]:
    """Yield the licences of the SPDX list, without those whose text is mostly not in the Latin alphabet."""
    licences = json.loads((folder / "package/spdx-full.json").read_text(encoding="utf-8"))
    for name in sorted(licences):
        text: str = licences[name]["licenseText"]
        if sum(ord(character) >= 0x0370 for character in text) < 0.1 * len(text):
            yield SourceDocument(name, text, source)
