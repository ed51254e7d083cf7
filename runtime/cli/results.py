"""Writing results: into files, which are noted in the record, or to standard output."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from diffplugin.errors import ImageError
from diffplugin.files import copy_file
from diffplugin.runtime.cli.inputs import STDIN
from diffplugin.runtime.cli.pipes import write_all
from diffplugin.runtime.cli.record import Record
from diffplugin.runtime.cli.targets import STDOUT, PhotoPaths
from diffplugin.runtime.photos.pixels import side_by_side
from diffplugin.runtime.photos.read import Photo, printable
from diffplugin.runtime.photos.write import check_writable, not_kept, photo_bytes, write_photo


class Results:
    """The results of one run.

    Args:
        request: fingerprint of the whole request.
        stdout: the stream for a result whose target is standard output.
        suffix: of a result on standard output, with the dot; None: PNG.
        png_level: compression of PNG files.
    """

    def __init__(
        self, record: Record, request: str, stdout: BinaryIO | None, suffix: str | None, *, png_level: int
    ) -> None:
        self._record, self._request, self._stdout, self._suffix = record, request, stdout, suffix
        self._png_level = png_level

    def is_up_to_date(self, paths: PhotoPaths) -> bool:
        """Whether the result of this request for this photo already exists."""
        if paths.source == STDIN or paths.target == STDOUT:
            return False
        return all(self._record.up_to_date(paths.source, path, self._request) for path in _files(paths))

    def check(self, paths: PhotoPaths, photo: Photo) -> None:
        """Check, before hours of work, that results can be written.

        Raises:
            ImageError: a result could not be written.
        """
        if paths.target != STDOUT:
            check_writable(paths.target, photo)
        if paths.compare:
            check_writable(paths.compare)

    def write(self, paths: PhotoPaths, before: Photo, after: Photo) -> tuple[str, ...]:
        """Write the result, and the side-by-side picture if requested; returns notes of what the file cannot hold.

        Raises:
            ImageError: it cannot be written. OSError: standard output cannot be written.
        """
        if self._stdout is not None:
            write_all(self._stdout, photo_bytes(after, self._suffix or ".png", png_level=self._png_level))
            return ()
        write_photo(paths.target, after, png_level=self._png_level)
        self._finish(paths, before, after)
        return not_kept(paths.target, after)

    def copy(self, paths: PhotoPaths, photo: Photo, content: bytes | None) -> None:
        """Write the photo unchanged: the same bytes if the format stays the same.

        Args:
            content: the bytes read from standard input.

        Raises:
            ImageError, OSError: as :meth:`write`.
        """
        if self._stdout is not None:
            own = paths.source.read_bytes() if content is None else content
            write_all(
                self._stdout,
                own if self._suffix is None else photo_bytes(photo, self._suffix, png_level=self._png_level),
            )
            return
        if paths.source.suffix.lower() == paths.target.suffix.lower():
            try:
                copy_file(paths.source, paths.target)
            except OSError as error:
                raise ImageError(f"{printable(paths.target)}: cannot be written ({error.strerror or error})") from None
        else:
            write_photo(paths.target, photo, png_level=self._png_level)
        self._finish(paths, photo, photo)

    def _finish(self, paths: PhotoPaths, before: Photo, after: Photo) -> None:
        if paths.compare:
            beside = Photo(rgb=side_by_side(before.rgb, after.rgb), path=before.path)
            write_photo(paths.compare, beside, png_level=self._png_level)
        if paths.source != STDIN:
            for path in _files(paths):
                self._record.add(paths.source, path, self._request)


def _files(paths: PhotoPaths) -> list[Path]:
    return [path for path in (paths.target, paths.compare) if path is not None and path != STDOUT]


def make_folders(output: Path, targets: list[Path]) -> None:
    """Create the output folder and the subfolders for results.

    Raises:
        ImageError: one cannot be created.
    """
    for folder in dict.fromkeys((output, *(path.parent for path in targets if path.is_relative_to(output)))):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ImageError(f"{printable(folder)}: this folder cannot be made ({error.strerror})") from None
