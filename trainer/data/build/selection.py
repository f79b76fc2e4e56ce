"""Chooses the documents of a domain: cut, deduplicated, of a given size, split into training and validation.

Everything is a function of the source documents and `SEED`: documents are visited in the order of a hash of their ids.
"""

import hashlib
import logging
import re
from collections.abc import Sequence
from typing import NamedTuple

from trainer.data.build.cutting import clean, cut
from trainer.data.build.deduplicate import SimilarityIndex
from trainer.data.build.readers import SourceDocument

logger = logging.getLogger(__name__)

SEED = 20_261_122
TRAIN_BYTES = 2_000_000
VALIDATION_BYTES = 110_000
NEAR_DUPLICATE = 0.8
"""Pieces at least this similar to one already chosen are dropped."""
RELATED = 0.5
"""Documents with pieces at least this similar go into the same split."""
_MIN_PIECE_BYTES = 400
# No related group larger than this goes to validation, so that it is made of several unrelated ones.
_MAX_VALIDATION_GROUP_BYTES = 40_000


class Cutting(NamedTuple):
    """How the documents of a domain are cut."""

    boundaries: Sequence[re.Pattern[str]]
    max_piece_bytes: int
    max_pieces: int
    """At most so many pieces are taken of one document, from its start on, for variety within the given size."""


class Piece(NamedTuple):
    """One chosen document of the corpus; `origin` is the id of the source document it was cut from."""

    id: str
    text: str
    source: str
    origin: str


class Selection(NamedTuple):
    """The chosen documents of a domain, and how many candidates were dropped as duplicates."""

    train: list[Piece]
    validation: list[Piece]
    num_exact_duplicates: int
    num_near_duplicates: int


def select(domain: str, documents: Sequence[SourceDocument], cutting: Cutting) -> Selection:
    """Return about `TRAIN_BYTES` + `VALIDATION_BYTES` of `documents` (or all there is), deduplicated and split."""
    index = SimilarityIndex()
    chosen: dict[str, Piece] = {}
    groups = _Groups()
    digests: set[bytes] = set()
    num_exact, num_near, total = 0, 0, 0
    for document in sorted(documents, key=lambda document: _rank(domain, document.id)):
        if total >= TRAIN_BYTES + VALIDATION_BYTES:
            break
        for piece in _pieces(document, cutting):
            digest = hashlib.sha256(piece.text.encode()).digest()
            if digest in digests:
                num_exact += 1
                continue
            similar = index.similar(piece.text)
            if max(similar.values(), default=0.0) >= NEAR_DUPLICATE:
                num_near += 1
                continue
            digests.add(digest)
            index.add(piece.id, piece.text)
            chosen[piece.id] = piece
            total += len(piece.text.encode())
            groups.add(piece.origin)
            for key, similarity in similar.items():
                if similarity >= RELATED:
                    groups.join(piece.origin, chosen[key].origin)
    logger.info(
        "%s: %d documents, %d bytes, %d exact and %d near duplicates", domain, len(chosen), total, num_exact, num_near
    )
    validation = _validation_groups(domain, list(chosen.values()), groups)
    by_id = sorted(chosen.values(), key=lambda piece: piece.id)
    return Selection(
        train=[piece for piece in by_id if groups.root(piece.origin) not in validation],
        validation=[piece for piece in by_id if groups.root(piece.origin) in validation],
        num_exact_duplicates=num_exact,
        num_near_duplicates=num_near,
    )


def _pieces(document: SourceDocument, cutting: Cutting) -> list[Piece]:
    texts = cut(clean(document.text), cutting.boundaries, cutting.max_piece_bytes)
    pieces = [
        Piece(
            id=document.id if len(texts) == 1 else f"{document.id}#{number}",
            text=clean(text),
            source=document.source,
            origin=document.id,
        )
        for number, text in enumerate(texts[: cutting.max_pieces], start=1)
    ]
    return [piece for piece in pieces if len(piece.text.encode()) >= _MIN_PIECE_BYTES]


def _validation_groups(domain: str, pieces: list[Piece], groups: "_Groups") -> set[str]:
    sizes: dict[str, int] = {}
    for piece in pieces:
        root = groups.root(piece.origin)
        sizes[root] = sizes.get(root, 0) + len(piece.text.encode())
    roots: set[str] = set()
    for root in sorted(sizes, key=lambda root: _rank(f"{domain} validation", root)):
        if sum(sizes[chosen] for chosen in roots) >= VALIDATION_BYTES:
            break
        if sizes[root] <= _MAX_VALIDATION_GROUP_BYTES:
            roots.add(root)
    return roots


def _rank(purpose: str, key: str) -> bytes:
    return hashlib.sha256(f"{SEED}/{purpose}/{key}".encode()).digest()


class _Groups:
    """Source documents that must stay together: union-find, whose root is the smallest id, in any order of joining."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def add(self, key: str) -> None:
        self._parent.setdefault(key, key)

    def root(self, key: str) -> str:
        while self._parent[key] != key:
            key = self._parent[key]
        return key

    def join(self, first: str, second: str) -> None:
        low, high = sorted((self.root(first), self.root(second)))
        self._parent[high] = low
