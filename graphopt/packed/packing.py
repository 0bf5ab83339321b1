"""Pack an ONNX file and its external data into one file that restores them byte for byte."""

from __future__ import annotations

import hashlib
import mmap
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from graphopt.errors import ModelError, TargetError
from graphopt.files import atomic_file, is_inside, is_one_of
from graphopt.packed import loader
from graphopt.packed.coding import Coded, code
from graphopt.packed.scanning import Payload, scan
from graphopt.packed.unpacking import is_packed

__all__ = ["Packing", "pack"]

_SMALLEST = 128  # bytes of a payload that is worth a segment of its own
_COPIED = 1 << 20  # bytes copied at a time


@dataclass(frozen=True)
class Packing:
    """What became of the bytes: `parts` adds up to `size` but for what fills up."""

    restored: int
    size: int
    parts: Mapping[str, int]


class _Writer:
    """Makes the header that `loader.read_index` reads; streams, which follow it, go to `body`."""

    def __init__(self, body: BinaryIO) -> None:
        self._content, self._body = bytearray(), body
        self.segments = 0
        self.parts = dict.fromkeys(("gaps", "codebooks", "codes", "values"), 0)

    def number(self, value: int) -> None:
        while value > 0x7F:
            self._content.append(value & 0x7F | 0x80)
            value >>= 7
        self._content.append(value)

    def text(self, value: str) -> None:
        raw = value.encode()
        self.number(len(raw))
        self._content += raw

    def copy(self, earlier: int) -> None:
        self.segments += 1
        self.number(loader.COPY)
        self.number(earlier)

    def segment(self, coded: Coded) -> None:
        self.segments += 1
        for value in (coded.kind, coded.width.bit_length() - 1, coded.count, coded.checksum):
            self.number(value)
        if coded.kind & loader.SPARSE:
            self.number(coded.gaps)
            self.number(coded.kept)
            self._content += coded.fill
        if coded.kind & loader.CODEBOOK:
            self.number(coded.codes)
        for codec, content in coded.streams:
            self.number(codec)
            self.number(len(content))
            self._body.write(content)
        gaps, book, values = coded.parts
        self.parts["gaps"] += gaps
        self.parts["codebooks"] += book
        self.parts["codes" if coded.codes else "values"] += values

    def coded(self) -> bytes:
        """The header, deflated by no more than a reader believes."""
        for level in (9, 0):
            deflate = zlib.compressobj(level, zlib.DEFLATED, -15, 9)
            coded = deflate.compress(self._content) + deflate.flush()
            if len(self._content) <= loader.HEADER_EXPANSION * len(coded):
                break
        return coded


def pack(source: str | Path | bytes, target: str | Path) -> Packing:
    """Write a model, given as its path or its bytes, as a packed file, whole or not at all.

    External data are taken from the model's own folder. Raises ModelError if the source is no ONNX
    model, or its external data are missing, too short, or outside its folder, and TargetError if
    the target cannot be written, or is one of the files that are read.
    """
    what = "the given bytes" if isinstance(source, bytes) else str(source)
    source, target = Path(source) if isinstance(source, str) else source, Path(target)
    with _spool(target) as body:
        header = _Writer(body)
        restored, read = _model(header, source, what)
        if is_one_of(target, read):
            raise TargetError(f"{target}: would replace a file of the model; name another")
        with atomic_file(target) as file:
            return _written(file, header, body, restored)


@contextmanager
def _spool(target: Path) -> Iterator[BinaryIO]:
    """Where streams wait until the header is known: a file without a name beside the target."""
    try:
        with tempfile.TemporaryFile(dir=target.parent) as spool:
            yield spool
    except OSError as error:
        raise TargetError(f"{target}: cannot be written ({error.strerror})") from error


def _model(header: _Writer, source: Path | bytes, what: str) -> tuple[int, list[Path]]:
    """Code a model and its external data; return their bytes, and which files they are."""
    with _content(source, what) as content:
        if is_packed(content[: len(loader.MAGIC)]):
            raise ModelError(f"{what}: is packed already")
        found = scan(content, what)
        header.number(1 + len(found.beside))
        restored, read = len(content), [] if isinstance(source, bytes) else [source]
        _file(header, "", content, found.inside)
        for name, payloads in found.beside.items():
            read.append(_beside(source, name, what))
            with _content(read[-1], what) as external:
                restored += len(external)
                _file(header, name, external, _bounded(payloads, len(external), read[-1]))
    return restored, read


@contextmanager
def _content(source: Path | bytes, what: str) -> Iterator[bytes | mmap.mmap]:
    """The bytes of a file, read as they are needed."""
    if isinstance(source, bytes):
        yield source
        return
    if source.exists() and not source.is_file():
        found = "a directory" if source.is_dir() else "no regular file"
        raise ModelError(f"{source}: is {found}, not an ONNX file; name one")
    try:
        with source.open("rb") as file:
            if not source.stat().st_size:
                yield b""
                return
            # Closed with the last view of it, which errors on their way out hold for a while.
            yield mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        which = "" if str(source) == what else f"{source.name} "
        raise ModelError(
            f"{what}: {which}cannot be read ({error.strerror}); check the path"
        ) from error


def _beside(source: Path | bytes, name: str, what: str) -> Path:
    """An external file, refused unless it really lies in the model's folder."""
    if isinstance(source, bytes):
        raise ModelError(f"{what}: data lie in the external file {name!r}; pack the model's path")
    path = source.parent / name
    if not is_inside(path, source.parent):
        raise ModelError(
            f"{what}: external data {name!r} leave the model's folder; put the file beside it"
        )
    if set(name) & set("\\:\0") or {"", ".", ".."} & set(name.split("/")):
        raise ModelError(
            f"{what}: external data are called {name!r}, and a packed model has plain names only, "
            "as weights.bin or data/weights.bin; save the model with such a name"
        )
    return path


def _bounded(payloads: tuple[Payload, ...], size: int, path: Path) -> tuple[Payload, ...]:
    """Payloads of an external file, in elements that fit; raises ModelError past its end."""
    for place in payloads:
        end = place.start + place.length
        if not 0 <= place.start <= end <= size:
            raise ModelError(f"{path}: has {size} bytes, {end} are needed; copy the whole file")
    return tuple(
        place if place.length % place.width == 0 else replace(place, width=1) for place in payloads
    )


def _file(
    header: _Writer, name: str, content: bytes | mmap.mmap, payloads: tuple[Payload, ...]
) -> None:
    """Code one file; what is between the payloads comes first, as one segment."""
    taken = [place for place in payloads if place.length >= _SMALLEST]
    header.text(name)
    view = memoryview(content)
    cuts = [0, *(edge for place in taken for edge in (place.start, place.start + place.length))]
    edges = zip(cuts[::2], [*cuts[1::2], len(view)], strict=True)
    header.segment(code(memoryview(b"".join(view[start:end] for start, end in edges)), 1))
    header.number(len(taken))
    known, after = dict[bytes, int](), 0
    for number, place in enumerate(taken):
        header.number(place.start - after)
        after = place.start + place.length
        payload = view[place.start : after]
        digest = hashlib.sha256(payload).digest() + bytes([place.width])
        if digest in known:
            header.copy(known[digest])
        else:
            known[digest] = number
            header.segment(code(payload, place.width))


def _written(target: BinaryIO, header: _Writer, body: BinaryIO, restored: int) -> Packing:
    coded = header.coded()
    preamble = loader.PREAMBLE.pack(loader.MAGIC, loader.VERSION, len(coded), zlib.crc32(coded))
    target.write(preamble + coded)
    body.seek(0)
    shutil.copyfileobj(body, target, _COPIED)
    size = len(preamble) + len(coded) + sum(header.parts.values())
    least = max(-(-restored // loader.MOST_EXPANSION), header.segments)
    missing = max(0, least - size)
    target.write(bytes(missing))
    parts = {"header and graph": len(preamble) + len(coded), **header.parts}
    return Packing(restored, size + missing, parts)
