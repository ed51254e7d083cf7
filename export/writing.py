"""Write a bundle so that, even after an interrupt or with a second writer, no reader sees a partial one."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from diffplugin.errors import BundleError
from diffplugin.files import unfinished
from diffplugin.manifest import MANIFEST

try:
    import fcntl
except ImportError:  # not on Windows, where a folder cannot be locked either
    fcntl = None  # type: ignore[assignment]

TEMPORARY = ".writing-"  # marks what an interrupted export may have left


@contextmanager
def writing(out: Path) -> Iterator[Path]:
    """Give a folder beside ``out`` to write a bundle into; it replaces ``out`` only on success.

    On any exception, including an interrupt, it is removed and an older bundle at ``out`` stays unchanged. Two writers
    have separate folders; the last one to finish wins.

    Raises:
        BundleError: ``out`` exists and is not a bundle, or cannot be written.
    """
    out = out.expanduser().resolve()
    try:
        if out.exists() and not (out / MANIFEST).is_file() and (not out.is_dir() or any(out.iterdir())):
            raise BundleError(f"{out}: exists and is no bundle; name another folder with --out")
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(out, error) from None
    folder = out.with_name(f"{out.name}{TEMPORARY}{secrets.token_hex(4)}")
    with unfinished(folder):
        try:
            folder.mkdir()
        except OSError as error:
            raise _unwritable(out, error) from None
        with _locked(folder):
            folder.chmod(0o755)
            yield folder
            _replace(folder, out)


def _unwritable(out: Path, error: OSError) -> BundleError:
    return BundleError(f"{out}: cannot be written ({error.strerror}); name another folder with --out")


def _replace(folder: Path, out: Path) -> None:
    """Swap two folders with two renames; the old one is removed last. Whatever stops it, ``out`` is a whole bundle."""
    old = folder.with_name(folder.name + ".old")
    try:
        while True:
            with suppress(FileNotFoundError):
                out.rename(old)
            try:
                folder.rename(out)
                break
            except OSError:
                if not out.exists():
                    raise
                # another writer has put its bundle here between the two renames; that one is the older one now
                shutil.rmtree(old, ignore_errors=True)
    finally:
        if old.exists() and not out.exists():
            old.rename(out)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Marks a folder as being written, for as long as this process lives."""
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network folders know no locks
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def in_use(folder: Path) -> bool:
    """Whether a living process writes into this folder."""
    if fcntl is None:
        return False
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False
