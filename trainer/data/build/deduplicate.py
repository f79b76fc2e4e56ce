"""Finds near-duplicate texts: MinHash proposes pairs, the exact Jaccard similarity of their word 5-grams decides."""

import re
from collections.abc import Iterable

from datasketch import MinHash, MinHashLSH

NUM_PERMUTATIONS = 128
SHINGLE_WORDS = 5
# Candidates are proposed from this estimate on: well under the similarities that are then decided exactly, since an
# estimate from 128 permutations has a standard error of about 0.04.
_CANDIDATE_SIMILARITY = 0.4
_WORD = re.compile(r"\w+|[^\w\s]+")


def shingles(text: str) -> frozenset[str]:
    """Return the set of runs of five words (or runs of punctuation) of `text`, without case and spacing."""
    words = _WORD.findall(text.lower())
    return frozenset(
        " ".join(words[start : start + SHINGLE_WORDS]) for start in range(max(1, len(words) - SHINGLE_WORDS + 1))
    )


def jaccard(first: frozenset[str], second: frozenset[str]) -> float:
    """Return the size of the intersection over the size of the union, in [0, 1]."""
    common = len(first & second)
    return common / (len(first) + len(second) - common)


class SimilarityIndex:
    """Texts seen so far, searchable by similarity."""

    def __init__(self) -> None:
        self._lsh = MinHashLSH(threshold=_CANDIDATE_SIMILARITY, num_perm=NUM_PERMUTATIONS)
        self._shingles: dict[str, frozenset[str]] = {}

    def similar(self, text: str) -> dict[str, float]:
        """Return the exact similarity of `text` to each text of the index that MinHash proposes, by key."""
        elements = shingles(text)
        candidates = {str(key) for key in self._lsh.query(_sketch(elements))}
        return {key: jaccard(elements, self._shingles[key]) for key in sorted(candidates)}

    def add(self, key: str, text: str) -> None:
        """Put `text` into the index under `key`, which must be new."""
        self._shingles[key] = shingles(text)
        self._lsh.insert(key, _sketch(self._shingles[key]))


def _sketch(elements: Iterable[str]) -> MinHash:
    sketch = MinHash(num_perm=NUM_PERMUTATIONS, seed=1)
    sketch.update_batch([element.encode() for element in sorted(elements)])
    return sketch
