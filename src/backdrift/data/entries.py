"""What is there to read: the pictures of a folder, a `.zip` or an array file, listed before any is decoded.

Whatever holds the pictures, the rest of the reading is the same. A zip is never unpacked: its entries are read in
place, and one whose path would climb out of it makes the whole file untrusted.
"""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from posixpath import splitext

from backdrift.data import arrays, labels
from backdrift.data.listing import Listing
from backdrift.errors import UserError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
_OTHERS = (".heic", ".heif", ".avif", ".jp2", ".svg", ".psd", ".dng", ".cr2", ".nef")  # named, rather than overlooked
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
_LARGEST_ENTRY = 2**28  # bytes; no picture in a training set is larger, a decompression bomb is
_METADATA = "metadata.jsonl"


@contextmanager
def listing(path: Path) -> Iterator[Listing]:
    """List the pictures of a folder, a `.zip`, a `.npy` or a `.npz`.

    Raises `UserError` if the path is missing or of another kind, if it has no pictures, or for what `labels` refuses.
    """
    if path.is_dir():
        yield _folder(path)
    elif not path.exists():
        raise UserError(f"There is no {path}; give a folder of pictures, a .zip, a .npy or a .npz.")
    elif path.suffix.lower() == ".zip":
        with _open_zip(path) as archive:
            yield _zip(path, archive)
    elif path.suffix.lower() in (".npy", ".npz"):
        yield arrays.read(path)
    elif path.suffix.lower() in EXTENSIONS:
        raise UserError(f"{path} is a single picture; give a folder, a .zip, a .npy or a .npz with at least two.")
    else:
        raise UserError(f"{path} cannot be read; give a folder of pictures, a .zip, a .npy or a .npz.")


def _folder(path: Path) -> Listing:
    files, seen = [], set()
    for folder, inner, names in os.walk(path, followlinks=True, onerror=_unreadable):
        inner[:] = [name for name in inner if _visible(name)]
        real = os.path.realpath(folder)
        if real in seen:  # a link back to a folder above
            inner.clear()
            continue
        seen.add(real)
        files += [(Path(folder) / name).relative_to(path).as_posix() for name in names if _visible(name)]
    return _describe(path, sorted(files), lambda name: (path / name).read_bytes(), lambda name: path / name)


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{path} is not a zip file, or a damaged one ({error}).") from None


def _zip(path: Path, archive: zipfile.ZipFile) -> Listing:
    entries = {entry.filename: entry for entry in archive.infolist() if not entry.is_dir()}
    for name, entry in entries.items():
        if ".." in PureWindowsPath(name).parts or PureWindowsPath(name).anchor:  # also splits at "/", knows "C:"
            raise UserError(f"{path} has an entry that climbs out of it ({name}); do not trust this file.")
        if entry.flag_bits & 1:
            raise UserError(f"{path} is encrypted ({name}); pack the pictures again without a password.")
        if entry.file_size > _LARGEST_ENTRY:
            raise UserError(f"{name} in {path} unpacks to {entry.file_size / 2**20:.0f} MB; it is no training picture.")
    files = sorted(name for name in entries if all(_visible(part) for part in name.split("/")))
    return _describe(path, files, archive.read, lambda name: io.BytesIO(archive.read(entries[name])))


def _describe(path: Path, files: list[str], read: Callable, handle: Callable) -> Listing:
    """The listing of `files`; `read` gives a file's bytes, `handle` what PIL opens."""
    from PIL import Image

    names = [name for name in files if splitext(name)[1].lower() in EXTENSIONS + _OTHERS]
    if not names:
        raise UserError(f"{path} has no pictures; looked for {', '.join(EXTENSIONS)}.")
    found, classes, texts = None, (), None
    base = labels.base_folder(names)
    beside = [folder for folder in (base, *base.parents) if str(folder / _METADATA) in files]
    if beside:
        where = f"{path}/{beside[0] / _METADATA}"
        try:
            text = read(str(beside[0] / _METADATA)).decode("utf-8")
        except (OSError, zipfile.BadZipFile, zlib.error, ValueError) as error:
            raise UserError(f"{where} cannot be read ({error}); it must be UTF-8 text.") from None
        rows = labels.read_metadata(text, names, beside[0], where)
        found, classes = labels.from_metadata(rows, names, where)
        texts = labels.texts_of(rows)
    if found is None:
        found, classes = labels.from_folders(names, str(path))
    return Listing(names, lambda i: Image.open(handle(names[i]), formats=_FORMATS), found, classes, texts)


def _unreadable(error: OSError):
    raise UserError(f"{error.filename} cannot be read ({error.strerror}).") from error


def _visible(part: str) -> bool:
    return not part.startswith(".") and part != "__MACOSX"
