"""Fetching a published archive: checked against its checksum and put in place whole."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import logging
import shutil
import tarfile
import tempfile
import urllib.request
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from graphopt.data.wording import reason
from graphopt.errors import DataError

__all__ = ["Archive", "fetch_gzip", "fetch_tar"]

_log = logging.getLogger(__name__)

# What a network, a file system and a damaged archive may raise.
_FAILURES = (
    OSError, EOFError, KeyError, ValueError, http.client.HTTPException, tarfile.TarError,
    zlib.error,
)  # fmt: skip
_TIMEOUT_S = 30
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Archive:
    """Where a file is published, and the MD5 its publisher gives."""

    urls: tuple[str, ...]
    md5: str


def fetch_gzip(archive: Archive, target: Path, what: str) -> None:
    """Download a gzip file and put its content at `target`."""
    with _fetched(archive, target.parent, what) as (packed, scratch):
        plain = scratch / target.name
        with gzip.open(packed, "rb") as source, plain.open("wb") as sink:
            shutil.copyfileobj(source, sink)
        plain.replace(target)


def fetch_tar(archive: Archive, target: Path, names: Sequence[str], what: str) -> None:
    """Download a tar file and put the members `target.name/name` into the folder `target`.

    Nothing but these is taken out, and only as plain files, so a member cannot leave the folder.
    """
    with _fetched(archive, target.parent, what) as (packed, scratch):
        folder = scratch / target.name
        folder.mkdir()
        with tarfile.open(packed, "r:gz") as tar:
            for name in names:
                source = tar.extractfile(f"{target.name}/{name}")
                if source is None:
                    raise tarfile.TarError(f"{name} is no file")
                with source, (folder / name).open("wb") as sink:
                    shutil.copyfileobj(source, sink)
        folder.replace(target)


@contextlib.contextmanager
def _fetched(archive: Archive, cache: Path, what: str) -> Iterator[tuple[Path, Path]]:
    """The downloaded file and a folder beside the target, both gone afterwards."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=cache) as name:
            scratch = Path(name)
            packed = scratch / "packed"
            _download_any(archive, packed)
            yield packed, scratch
    except _FAILURES as error:
        raise DataError(
            f"data: {what} is not in {cache} and could not be downloaded ({reason(error)}); set "
            f"GRAPHOPT_DATA to a folder that has it in its official layout"
        ) from error


def _download_any(archive: Archive, target: Path) -> None:
    """Try one address after the other; the last failure counts."""
    for number, url in enumerate(archive.urls, start=1):
        try:
            _download(url, target, archive.md5)
        except (OSError, ValueError, http.client.HTTPException) as error:
            if number == len(archive.urls):
                raise
            _log.info("data: %s failed (%s), trying the next address", url, error)
        else:
            return


def _download(url: str, target: Path, md5: str) -> None:
    _log.info("data: downloading %s", url)
    digest = hashlib.md5(usedforsecurity=False)
    with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as source, target.open("wb") as sink:
        while chunk := source.read(_CHUNK_BYTES):
            digest.update(chunk)
            sink.write(chunk)
    if digest.hexdigest() != md5:
        raise ValueError(f"{url} has MD5 {digest.hexdigest()}, expected {md5}")
