"""Files of a configuration: whole, and of a size that one may have."""

from __future__ import annotations

import pytest

from cachecast import files
from cachecast.files import read_file


def test_a_file_is_read_whole_up_to_the_size_that_one_may_have(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 3)
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    assert read_file(path) == b"abc"
    path.write_bytes(b"abcd")
    with pytest.raises(OSError, match="File too large, 3 bytes at most"):
        read_file(str(path))


def test_what_has_no_end_is_not_read_to_it():
    with pytest.raises(OSError, match="File too large"):
        read_file("/dev/zero")


def test_what_is_not_there_is_not_read(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "none")
