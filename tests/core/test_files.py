"""Files whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from diffplugin.files import copy_file, discard_unfinished, unfinished, write_bytes, write_text, written_whole


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole(tmp_path: Path) -> None:
    write_bytes(tmp_path / "deep" / "er" / "a.bin", b"one", memoryview(b"two"))
    assert (tmp_path / "deep/er/a.bin").read_bytes() == b"onetwo" and names(tmp_path / "deep/er") == ["a.bin"]
    write_text(tmp_path / "t.txt", "雪\n")
    assert (tmp_path / "t.txt").read_bytes() == "雪\n".encode()
    copy_file(tmp_path / "t.txt", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == "雪\n".encode()


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt, SystemExit, OSError])
def test_what_fails_changes_nothing(tmp_path: Path, kind: type[BaseException]) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(kind), written_whole(tmp_path / "a") as temporary:
        temporary.write_text("half")
        assert len(names(tmp_path)) == 2
        raise kind
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "old"


def test_permissions_and_links_stay(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "real").chmod(0o640)
    (tmp_path / "link").symlink_to("real")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"
    assert (tmp_path / "real").stat().st_mode & 0o777 == 0o640
    before = os.umask(0o022)
    try:
        write_text(tmp_path / "fresh", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "fresh").stat().st_mode & 0o777 == 0o644, "a new file is as the umask wants it"


def test_the_last_of_two_writers_wins(tmp_path: Path) -> None:
    with written_whole(tmp_path / "a") as first, written_whole(tmp_path / "a") as second:
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "a").read_text() == "first" and names(tmp_path) == ["a"]


def test_a_folder_that_vanishes_is_an_error_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    with pytest.raises(OSError, match="No such file"), written_whole(tmp_path / "sub" / "a") as temporary:
        temporary.write_text("x")
        temporary.unlink()
        (tmp_path / "sub").rmdir()


def test_another_thread_can_remove_what_is_unfinished(tmp_path: Path) -> None:
    folder = tmp_path / "writing"
    with pytest.raises(OSError, match="No such file"), unfinished(folder), written_whole(tmp_path / "a") as temporary:
        (folder / "deep").mkdir(parents=True)
        (folder / "deep" / "x").write_text("x")
        temporary.write_text("half")
        thread = threading.Thread(target=discard_unfinished)
        thread.start()
        thread.join()
        assert names(tmp_path) == []


def test_many_writers_never_show_half_a_file(tmp_path: Path) -> None:
    """Four processes replace a file over and over; every read of it is one of theirs, whole."""
    code = (
        "import sys; from diffplugin.files import write_bytes\n"
        "for _ in range(40): write_bytes(sys.argv[1], sys.argv[2].encode() * 200_000)"
    )
    file = tmp_path / "a"
    write_bytes(file, b"0" * 200_000)
    writers = [subprocess.Popen([sys.executable, "-c", code, str(file), str(n)]) for n in range(1, 4)]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        content = file.read_bytes()
        assert len(content) == 200_000 and len(set(content)) == 1, "half of two files"
        seen.add(content[:1])
    assert all(writer.returncode == 0 for writer in writers) and len(seen) >= 2 and names(tmp_path) == ["a"]
