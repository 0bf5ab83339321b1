"""Read packed models (`.gopt`): copy this one file beside an application, it needs nothing of ours.

    session("model.gopt")           an onnxruntime.InferenceSession; no file is written
    restore("model.gopt")[""]       the bytes of the ONNX file; external data by their names

A packed model is the ONNX file and its external data, byte for byte: magic, version, header (with
its length and CRC-32), streams; zero bytes fill it up to 1/4096 of what it restores to and to one
for each segment. A tensor is a segment of elements of `width` bytes; all between them is one more,
the frame. Values lie in byte planes, or as codes into a codebook. Where they are sparse, the
commonest is left out and the gaps between the others are listed: g < 255 is g omitted elements and
one that is kept, 255 is 255 omitted ones. Streams are stored, deflated (canonical Huffman codes,
which zlib decodes at the speed of C) or LZMA2. No length is trusted: memory is bounded by the size.
"""

from __future__ import annotations

import io
import lzma
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = ["PackedError", "PackedFile", "read_index", "restore", "restored_pieces", "session"]

MAGIC = b"\x89GOPT\r\n\x1a"  # what transfers as text would change: bit 7, line ends, end of file
VERSION = 1
PREAMBLE = struct.Struct("<8sHII")
MOST_EXPANSION, HEADER_EXPANSION = 4096, 64
SPARSE, CODEBOOK, COPY = 1, 2, 4  # bits of a segment's kind; a copy repeats an earlier segment
STORED, DEFLATED, LZMA = 0, 1, 2
LZMA_FILTERS = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 22, "lc": 0, "lp": 0, "pb": 0}]

_CHUNK = 1 << 14  # elements restored at a time; gaps: half of it
_AGAIN = "damaged or cut off; copy the file again"
_Bytes = npt.NDArray[np.uint8]
_Elements = npt.NDArray[np.unsignedinteger]
Stream = tuple[int, int, int]  # how it is coded, offset in the file, bytes there


class PackedError(ValueError):
    """The file is not a packed model, is damaged, or is of a version that is not known here."""


class Segment(NamedTuple):
    """Elements restored in a row; what follows the checksum matters to some kinds only."""

    kind: int
    width: int
    elements: int
    checksum: int
    gaps: int
    kept: int
    fill: bytes  # the omitted value
    codes: int  # entries of the codebook
    streams: tuple[Stream, ...]  # gaps; planes, or codebook (in planes) and planes of codes


class PackedFile(NamedTuple):
    """A file to restore: the model has no name, external data are named by their location."""

    name: str
    frame: Segment
    segments: tuple[tuple[int, Segment], ...]  # each after so many bytes of the frame


def session(
    source: str | Path | bytes,
    options: ort.SessionOptions | None = None,
    providers: tuple[str, ...] = ("CPUExecutionProvider",),
) -> ort.InferenceSession:
    """Load a packed model into ONNX Runtime, from memory; `options` can serve no other model."""
    import onnxruntime as ort  # here, so that restoring needs numpy alone

    files, options = restore(source), options or ort.SessionOptions()
    model, names = files.pop(""), list(files)
    if names:
        options.add_external_initializers_from_files_in_memory(
            names, [files[name] for name in names], [len(files[name]) for name in names]
        )
    return ort.InferenceSession(model, options, providers=list(providers))


def restore(source: str | Path | bytes) -> dict[str, bytes]:
    """The model's bytes (its name is "") and those of its external data."""
    restored = {}
    with io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as file:
        for packed in read_index(file):
            buffer = io.BytesIO()
            buffer.writelines(piece.data for piece in restored_pieces(file, packed))
            restored[packed.name] = buffer.getvalue()  # it shares the memory and is no copy
    return restored


def read_index(file: BinaryIO) -> tuple[PackedFile, ...]:
    """Read and check everything but the streams."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(PREAMBLE.size)
    if not head.startswith(MAGIC) or len(head) < PREAMBLE.size:
        raise PackedError("not a packed model (it does not begin as one), or cut off")
    _, version, length, checksum = PREAMBLE.unpack(head)
    if version != VERSION:
        raise PackedError(
            f"packed in version {version} of the format, this reads version {VERSION}; "
            "update graphopt (or the copied loader), or pack the model again"
        )
    coded = file.read(min(length, size))
    if len(coded) != length or zlib.crc32(coded) != checksum:
        raise PackedError(f"the header has another checksum: {_AGAIN}")
    try:
        content = zlib.decompressobj(-15).decompress(coded, HEADER_EXPANSION * length + 64)
    except zlib.error as error:
        raise PackedError(f"the header: {error}: {_AGAIN}") from error
    files = _Header(content, PREAMBLE.size + length, size).files()
    segments = [s for f in files for s in (f.frame, *(segment for _, segment in f.segments))]
    if sum(s.width * s.elements for s in segments) > MOST_EXPANSION * size:
        raise PackedError(f"restores to more than {MOST_EXPANSION} times its {size} bytes; refused")
    return files


class _Header:
    """Numbers of seven bits a byte, the lowest first, and names:

    files; of each: length of the name, name, frame, segments; of each: bytes of the frame before
    it, segment. A segment: kind; if a copy, which one it repeats; else logarithm of the width,
    count, CRC-32; if sparse gaps, kept, fill; if coded entries; codec and length of each stream.
    """

    def __init__(self, content: bytes, offset: int, size: int) -> None:
        self._content, self._place, self._size = content, 0, size
        self._offset = offset  # of the next stream in the file, which has `size` bytes
        self._most = size  # segments from here on

    def _taken(self, length: int) -> bytes:
        piece = self._content[self._place : self._place + length]
        if len(piece) != length:
            raise PackedError(f"the header ends too early: {_AGAIN}")
        self._place += length
        return piece

    def _number(self, most: int) -> int:
        value = 0
        for place, byte in enumerate(self._content[self._place : self._place + 10]):
            value |= (byte & 0x7F) << 7 * place
            if byte < 0x80:
                break
        else:
            raise PackedError(f"the header ends too early: {_AGAIN}")
        self._place += place + 1
        if value > most:
            raise PackedError(f"the header says {value}, at most {most} is possible: {_AGAIN}")
        return value

    def files(self) -> tuple[PackedFile, ...]:
        files: dict[str, PackedFile] = {}
        for _ in range(self._number(self._most)):
            name = self._taken(self._number(4096)).decode(errors="replace")
            leaving = {"", ".", ".."} & set(name.split("/")) or set(name) & set("\\:\0")
            if name in files or (name and leaving):
                raise PackedError(f"{name!r} is no new name in the model's folder; refused")
            frame, segments = self._segment([]), list[tuple[int, Segment]]()
            left = frame.width * frame.elements
            for _ in range(self._number(self._most)):
                segments.append((self._number(left), self._segment(segments)))
                left -= segments[-1][0]
            files[name] = PackedFile(name, frame, tuple(segments))
        if "" not in files:
            raise PackedError(f"there is no model in it: {_AGAIN}")
        return tuple(files.values())

    def _segment(self, earlier: list[tuple[int, Segment]]) -> Segment:
        kind, self._most = self._number(COPY if earlier else COPY - 1), self._most - 1
        if kind == COPY:
            return earlier[self._number(len(earlier) - 1)][1]
        width, count = 1 << self._number(3), self._number(MOST_EXPANSION * self._size)
        checksum, gaps, kept, codes, fill = self._number(2**32 - 1), 0, count, 0, b""
        if kind & SPARSE:
            gaps = self._number(count)
            kept, fill = self._number(gaps), self._taken(width)
        if kind & CODEBOOK:
            codes = self._number(min(kept, 2**16))
        planes = 2 + (codes > 256) if codes else width if kept else 0
        streams = tuple(self._stream(width * count) for _ in range(bool(gaps) + planes))
        return Segment(kind, width, count, checksum, gaps, kept, fill, codes, streams)

    def _stream(self, most: int) -> Stream:  # at most as long as if it was stored
        codec, length = self._number(LZMA), self._number(min(most, self._size - self._offset))
        self._offset += length
        return codec, self._offset - length, length


class _Reader:
    """Restores a stream, as many bytes at a time as are asked for."""

    def __init__(self, file: BinaryIO, stream: Stream) -> None:
        self._file, (self._codec, self._place, length) = file, stream
        self._end = self._place + length
        if self._codec == DEFLATED:
            self._inflate = zlib.decompressobj(-15)
        elif self._codec == LZMA:  # only then: it takes the memory of its dictionary at once
            self._lzma = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=LZMA_FILTERS)

    def take(self, length: int) -> _Bytes:
        """The next `length` bytes; raises PackedError if there are fewer."""
        data = b""
        try:
            while len(data) < length:
                data += self._some(length - len(data))
        except (zlib.error, lzma.LZMAError, EOFError) as error:
            raise PackedError(f"a segment: {error}: {_AGAIN}") from error
        return np.frombuffer(data, np.uint8)

    def _some(self, most: int) -> bytes:
        if self._codec == STORED:
            piece = self._coded(most)
        elif self._codec == DEFLATED:
            coded = self._inflate.unconsumed_tail or self._coded(1 << 16)
            piece = self._inflate.decompress(coded, most)
            self._place = self._end if self._inflate.eof else self._place
        else:
            coded = self._coded(1 << 16) if self._lzma.needs_input else b""
            piece = self._lzma.decompress(coded, most)
        if not piece and self._place == self._end:
            raise EOFError("it ends too early")
        return piece

    def _coded(self, most: int) -> bytes:
        self._file.seek(self._place)
        piece = self._file.read(min(most, self._end - self._place))
        self._place = self._place + len(piece) if piece else self._end
        return piece


def restored_pieces(file: BinaryIO, packed: PackedFile) -> Iterator[_Bytes]:
    """A file's bytes in pieces of bounded size; raises PackedError where a checksum fails."""
    frame = _checked(file, packed.frame)
    rest = np.empty(0, np.uint8)
    for before, segment in packed.segments:
        while before:
            rest = rest if len(rest) else next(frame)
            yield rest[:before]
            before, rest = before - len(rest[:before]), rest[before:]
        yield from _checked(file, segment)
    yield rest
    yield from frame


def _checked(file: BinaryIO, segment: Segment) -> Iterator[_Bytes]:
    checksum = 0
    for piece in _pieces(segment, [_Reader(file, stream) for stream in segment.streams]):
        checksum = zlib.crc32(piece.data, checksum)
        yield piece
    if checksum != segment.checksum:
        raise PackedError(f"a segment does not have its checksum: {_AGAIN}")


def _pieces(segment: Segment, readers: list[_Reader]) -> Iterator[_Bytes]:
    sparse, fill = segment.kind & SPARSE, np.frombuffer(segment.fill, f"<u{segment.width}")
    gaps, kept, left, book = segment.gaps, segment.kept, segment.elements, None
    steps_of, planes = readers[0:1], readers[bool(gaps) :]
    if segment.codes:
        rows = planes.pop(0).take(segment.codes * segment.width).reshape(segment.width, -1)
        book = rows.T.copy().view(f"<u{segment.width}")[:, 0]
    while gaps:
        steps = steps_of[0].take(min(gaps, _CHUNK // 2)).astype(np.int64)
        keeps = steps < 255
        ends = np.cumsum(steps + keeps)
        places, length = ends[keeps] - 1, int(ends[-1])
        gaps, kept, left = gaps - len(steps), kept - len(places), left - length
        if kept < 0 or left < 0:
            break
        piece = np.full(length, fill)
        if len(places):
            piece[places] = _values(planes, book, len(places))
        yield piece.view(np.uint8)
    if sparse and (kept or left < 0):
        raise PackedError(f"a segment lists other elements than it says: {_AGAIN}")
    for count in [min(_CHUNK, left - start) for start in range(0, left, _CHUNK)]:
        yield (np.full(count, fill) if sparse else _values(planes, book, count)).view(np.uint8)


def _values(planes: list[_Reader], book: _Elements | None, count: int) -> _Elements:
    """A segment's next values, from planes or a codebook."""
    rows = np.empty((count, len(planes)), np.uint8)
    for place, plane in enumerate(planes):
        rows[:, place] = plane.take(count)
    values: _Elements = rows.view(f"<u{len(planes)}")[:, 0]
    if book is not None and int(values.max()) >= len(book):
        raise PackedError(f"a segment has a code without an entry: {_AGAIN}")
    return values if book is None else book[values]
