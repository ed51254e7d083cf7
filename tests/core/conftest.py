"""Shared with the other folder of tests."""

from tests.bundles import edit, folder, here, write

__all__ = ["edit", "folder", "here", "write"]
