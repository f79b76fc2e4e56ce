"""Shards hold the corpus exactly, are built once, and are built again when they are not sound."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.token_shards import token_shard
from trainer.data.corpora import read_documents
from trainer.data.shards import TokenShard, default_cache_dir, ensure_shard
from trainer.data.tokenizer import load_tokenizer

TOKENIZER = "bpe-1024"


def build(cache_dir: Path) -> TokenShard:
    return ensure_shard("legal", "validation", TOKENIZER, cache_dir)


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with one shard in it, not to be altered."""
    folder = tmp_path_factory.mktemp("tokens")
    build(folder)
    return folder


def the_file(cache_dir: Path, suffix: str) -> Path:
    (path,) = cache_dir.glob(f"*{suffix}")
    return path


def test_shard_decodes_to_the_documents_between_end_of_text_tokens(cache_dir: Path):
    shard, tokenizer = build(cache_dir), load_tokenizer(TOKENIZER)
    documents = list(read_documents("legal", "validation"))
    assert shard.document_ids == tuple(document.id for document in documents)
    assert shard.tokens[0] == shard.tokens[-1] == tokenizer.end_of_text_id
    ends = [*(shard.document_offsets[1:] - 1), shard.num_tokens - 1]
    for document, start, end in zip(documents, shard.document_offsets, ends, strict=True):
        assert tokenizer.decode(shard.tokens[start:end]) == document.text
        assert shard.tokens[end] == tokenizer.end_of_text_id


def test_index_records_the_bytes_of_each_document(cache_dir: Path):
    expected = [len(document.text.encode()) for document in read_documents("legal", "validation")]
    assert build(cache_dir).document_num_bytes.tolist() == expected


def test_tokens_are_a_read_only_memory_map_of_uint16(cache_dir: Path):
    tokens = build(cache_dir).tokens
    assert isinstance(tokens, np.memmap)
    assert tokens.dtype == np.uint16
    assert not tokens.flags.writeable


def test_second_use_reads_the_cache(cache_dir: Path):
    before = {path: path.stat().st_mtime_ns for path in cache_dir.iterdir()}
    build(cache_dir)
    assert {path: path.stat().st_mtime_ns for path in cache_dir.iterdir()} == before


def test_two_builds_write_identical_files(cache_dir: Path, tmp_path: Path):
    build(tmp_path)
    for path in cache_dir.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_processes_that_build_at_once_agree_and_leave_nothing_behind(cache_dir: Path, tmp_path: Path):
    program = (
        "import sys; from pathlib import Path; from trainer.data.shards import ensure_shard; "
        f"ensure_shard('legal', 'validation', {TOKENIZER!r}, Path(sys.argv[1]))"
    )
    processes = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path)]) for _ in range(2)]
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        path.name: path.read_bytes() for path in cache_dir.iterdir()
    }


@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4), data=st.data())
def test_touched_documents_are_those_with_a_token_in_the_range(sizes: list[int], data: st.DataObject):
    # A null byte is one token, so sizes are in tokens. End-of-text belongs to the document before, the first to none.
    shard = token_shard("legal", ["\x00" * size for size in sizes])
    owners = [None] + [name for name, size in zip(shard.document_ids, sizes, strict=True) for _ in range(size + 1)]
    assert len(owners) == shard.num_tokens
    start = data.draw(st.integers(0, shard.num_tokens - 1))
    stop = data.draw(st.integers(start + 1, shard.num_tokens))
    assert shard.documents_between(start, stop) == tuple(dict.fromkeys(filter(None, owners[start:stop])))


@given(sizes=st.lists(st.integers(1, 9), min_size=3, max_size=6), seq_len=st.integers(1, 5))
def test_windows_that_touch_a_document_are_those_that_name_it(sizes: list[int], seq_len: int):
    shard = token_shard("legal", ["\x00" * size for size in sizes])
    starts = range(0, shard.num_windows(seq_len) * seq_len, seq_len)
    touched = [name for start in starts for name in shard.documents_between(start, start + seq_len + 1)]
    for name in shard.document_ids:
        assert shard.num_windows_touching(name, seq_len) == touched.count(name)


def truncated(data: bytes) -> bytes:
    return data[:-100]


def bit_flipped(data: bytes) -> bytes:
    return data[:-1000] + bytes([data[-1000] ^ 1]) + data[-999:]


def emptied(_: bytes) -> bytes:
    return b""


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [(".npy", truncated), (".npy", bit_flipped), (".npy", emptied), (".json", truncated), (".json", emptied)],
)
def test_damaged_shard_is_built_anew(
    cache_dir: Path, tmp_path: Path, suffix: str, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
):
    build(tmp_path)
    path = the_file(tmp_path, suffix)
    path.write_bytes(damage(path.read_bytes()))
    assert np.array_equal(build(tmp_path).tokens, build(cache_dir).tokens)
    assert "rebuilding" in caplog.text
    assert path.read_bytes() == (cache_dir / path.name).read_bytes()


@pytest.mark.parametrize("field", ["tokenizer_fingerprint", "corpus_sha256", "tokens_sha256", "num_tokens", "format"])
def test_shard_of_other_inputs_is_built_anew(cache_dir: Path, tmp_path: Path, field: str):
    build(tmp_path)
    path = the_file(tmp_path, ".json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: "other"}))
    build(tmp_path)
    assert path.read_bytes() == (cache_dir / path.name).read_bytes()


def test_missing_tokens_are_built_anew(tmp_path: Path):
    build(tmp_path)
    the_file(tmp_path, ".npy").unlink()
    assert build(tmp_path).num_tokens == len(np.load(the_file(tmp_path, ".npy")))


def test_other_tokenizer_has_its_own_shard(cache_dir: Path, tmp_path: Path):
    build(tmp_path)
    ensure_shard("legal", "validation", "bpe-4096", tmp_path)
    assert len(list(tmp_path.iterdir())) == 4
    assert np.array_equal(build(tmp_path).tokens, build(cache_dir).tokens)


def test_cache_is_under_evenload_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("EVENLOAD_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "cache" / "tokens"
    monkeypatch.delenv("EVENLOAD_HOME")
    assert default_cache_dir() == Path.home() / ".evenload" / "cache" / "tokens"
