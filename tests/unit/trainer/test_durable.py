"""Files are whole or absent."""

from pathlib import Path

import pytest

from trainer.durable import commit, replace_file, temporary_name, write_durably


@pytest.mark.parametrize("write", [write_durably, replace_file])
def test_content_is_replaced_and_nothing_else_stays(tmp_path: Path, write):
    path = tmp_path / "x.json"
    write(path, b"old")
    write(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("write", [write_durably, replace_file])
def test_write_into_a_folder_that_is_missing_fails_and_makes_nothing(tmp_path: Path, write):
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "missing" / "x.json", b"new")
    assert not list(tmp_path.iterdir())


def test_folder_gets_its_name_when_complete(tmp_path: Path):
    path = tmp_path / "step-1"
    temporary = temporary_name(path)
    temporary.mkdir()
    (temporary / "a").write_bytes(b"a")
    assert not path.exists()
    commit(temporary, path)
    assert (path / "a").read_bytes() == b"a"
    assert not temporary.exists()
