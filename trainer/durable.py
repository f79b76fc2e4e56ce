"""Files that are whole or absent, whatever happens while they are written.

The order is that of PostgreSQL's durable_rename: write under another name, fsync the file, rename, fsync the folder.
A failed fsync is not retried: the kernel may already have dropped the pages it could not write.
"""

import os
from pathlib import Path


def fsync_path(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_name(path: Path) -> Path:
    """Return a hidden name beside `path` that no other process uses."""
    return path.with_name(f".{path.name}.tmp-{os.getpid()}")


def commit(temporary: Path, path: Path) -> None:
    """Give a complete file or folder its final name, durably."""
    fsync_path(temporary)
    temporary.rename(path)
    fsync_path(path.parent)


def write_durably(path: Path, content: bytes) -> None:
    """Replace `path` by `content`, so that a reader at any time, or after a power cut, finds the old or the new one."""
    temporary = temporary_name(path)
    temporary.write_bytes(content)
    commit(temporary, path)


def replace_file(path: Path, content: bytes) -> None:
    """Replace `path` by `content` for readers of this machine; after a power cut it may be stale or empty.

    For files that are rewritten every second and of which nothing depends.
    """
    temporary = temporary_name(path)
    temporary.write_bytes(content)
    temporary.replace(path)
