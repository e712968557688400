"""Downloads files (resumable, checked by checksum) and unpacks archives whole or not at all."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ..errors import InputError


@dataclass(frozen=True)
class Archive:
    """Holds an official archive's address, its checksum, and the folder that it unpacks to."""

    url: str
    md5: str
    folder: str

    @property
    def file(self) -> str:
        """Return the archive's file name."""
        return self.url.rsplit("/", 1)[-1]


# CIFAR is taken in its binary version: the "python" one is pickled, and pickles are never opened.
ARCHIVES = {
    "cifar10": Archive(
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "c32a1d4ab5d03f1284b67883e8d87530",
        "cifar-10-batches-bin",
    ),
    "cifar100": Archive(
        "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        "03b5dce01913d631647c71ecec9e9cb8",
        "cifar-100-binary",
    ),
    "tiny-imagenet": Archive(
        "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        "90528d7ca1a48142e341f4ef8d21d0de",
        "tiny-imagenet-200",
    ),
    "imagenette": Archive(  # the version of 320 px: enough for 224 px, a quarter of the full one
        "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-320.tgz",
        "3df6f0d01a2c9592104656642f5e78a3",
        "imagenette2-320",
    ),
}


def find_or_fetch(what: str, url: str, md5: str, path: Path, download: bool) -> None:
    """Fetch ``path`` if ``download``, else raise InputError, which says how to get the file."""
    if not download:
        raise InputError(
            f"{what} needs the file {path}, which is not there: load it with download=True "
            f"(--download on the command line), or fetch {url} by hand and put it there."
        )
    fetch(url, path, md5)


def fetch(url: str, path: Path, checksum: str) -> None:
    """Download ``url`` to ``path``; continue where an earlier attempt stopped.

    What has arrived is kept in ``<path>.part`` until it is whole; a wrong checksum deletes it.

    Args:
        checksum: hexadecimal MD5 (32 digits) or SHA-256 (64 digits).

    Raises:
        InputError: the download fails or breaks off, the disk is full, the checksum is wrong.
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = any(_receive(url, part) for _ in range(5))  # each continues the one before
    except (OSError, http.client.HTTPException) as error:
        raise InputError(
            f"{url} could not be downloaded to {path} ({error}); what has arrived is kept, so run "
            "it again to go on, or fetch the file by hand and put it there."
        ) from None
    if not whole:
        raise InputError(
            f"The download of {url} keeps breaking off; what has arrived is kept in {part}, so "
            "run it again to go on."
        )
    _check_sum(part, checksum, "it has been removed: run it again, or fetch it by hand")
    os.replace(part, path)


def _receive(url: str, part: Path) -> bool:
    """Download what ``part`` lacks of ``url``, and return whether it is whole now."""
    have = part.stat().st_size if part.is_file() else 0
    headers = {"User-Agent": "dfkd_lite"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        reply = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # "range not satisfiable": part is whole already, or too long
            raise
        error.close()
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return True
        part.unlink()
        return False
    with reply:
        resumed = reply.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        done = have if resumed else 0
        length = reply.headers.get("Content-Length")
        total = done + int(length) if length else None
        bar = tqdm.wrapattr(reply, "read", total=total, initial=done, desc=part.stem)
        with open(part, "ab" if resumed else "wb") as out, bar as told:
            try:
                shutil.copyfileobj(told, out, 2**18)
            except (http.client.IncompleteRead, ConnectionError, TimeoutError):
                return False
    return total is None or part.stat().st_size == total


def _check_sum(path: Path, checksum: str, advice: str) -> None:
    """Compare a file with its checksum; remove a wrong ``.part``, as it cannot be continued."""
    kind = {32: "md5", 64: "sha256"}[len(checksum)]
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False))
    if found.hexdigest() == checksum.lower():
        return
    if path.suffix == ".part":
        path.unlink()
    raise InputError(
        f"{path} is damaged or another version: its {kind.upper()} is {found.hexdigest()}, not "
        f"{checksum}; {advice}."
    )


def unpacked(name: str, root: Path, download: bool) -> Path:
    """Return an official archive's unpacked folder; unpack or fetch the archive where needed."""
    archive = ARCHIVES[name]
    folder, file = root / archive.folder, root / archive.file
    if folder.is_dir():
        return folder
    if file.is_file():
        _check_sum(file, archive.md5, "delete it and get it again")
    else:
        find_or_fetch(name, archive.url, archive.md5, file, download)
    _unpack(file, archive.folder)
    return folder


def _unpack(file: Path, folder: str) -> None:
    """Unpack ``folder`` beside its archive, whole or not at all; write nothing elsewhere."""
    temporary = file.parent / f".{folder}.unpacking"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:  # extract() drops "..", drives and leading "/"
                for member in tqdm(archive.infolist(), f"unpacking {file.name}"):
                    archive.extract(member, temporary)
        else:
            with tarfile.open(file) as tar:
                for entry in tqdm(tar, f"unpacking {file.name}", unit=" files"):
                    tar.extract(entry, temporary, filter="data")
        os.replace(temporary / folder, file.parent / folder)
    except (OSError, EOFError, zlib.error, tarfile.TarError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{file} cannot be unpacked ({error}); delete it and get it again."
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_text(path: Path) -> str:
    """Read a text file of an archive."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}); unpack its archive again.") from None
