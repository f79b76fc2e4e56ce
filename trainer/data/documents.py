"""Which document each position of a window belongs to.

A document begins with the end-of-text token before it, so that all of them begin alike, and so that what predicts the
first token of a document has seen nothing of the one before. The end-of-text token as a target ends a document.
"""

import numpy as np
from numpy.typing import NDArray

from trainer.data.shards import TokenShard


def documents_of_window(shard: TokenShard, start: int, seq_len: int) -> NDArray[np.int64]:
    """Return the number of each input's document within the window, shape [seq_len]: from 0, never falling."""
    positions = np.arange(start, start + seq_len)
    owners = np.searchsorted(shard.document_offsets - 1, positions, side="right")
    return owners - owners[0]
