"""Choose the smallest coding of a tensor's bytes: planes or codebook, dense or sparse."""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graphopt.packed import loader

__all__ = ["Coded", "code"]

_Bytes = npt.NDArray[np.uint8]
_Elements = npt.NDArray[np.unsignedinteger]
_Stream = tuple[int, bytes]
_Coder = Callable[[_Bytes], _Stream]

_BLOCK = 1 << 18  # elements looked at together
_MOST_CODES = 1 << 16
_SMALL = 1 << 16  # bytes of a sparse tensor on which repetitions are worth a try
_TRY_WHOLE = 1 << 20  # of a longer stream, a sample says what is worth trying
_SAMPLES, _SAMPLE = 4, 1 << 16
_WORTHWHILE = 0.99  # what repetitions must bring for more to be tried
_LZMA_GAIN = 1 / 16  # it decodes much slower than deflate
_STREAM_BYTES = 5  # what the header says of a stream, about
_SEGMENT_BYTES = 12


@dataclass(frozen=True)
class Coded:
    """A segment's entry in the header but for where its streams lie, and those streams.

    `parts` are the bytes of the gaps, the codebook and the values.
    """

    kind: int
    width: int
    count: int
    checksum: int
    gaps: int
    kept: int
    fill: bytes
    codes: int
    streams: tuple[_Stream, ...]
    parts: tuple[int, int, int]

    @property
    def size(self) -> int:
        """Bytes in the file, about."""
        return _SEGMENT_BYTES + sum(_STREAM_BYTES + len(content) for _, content in self.streams)


def code(content: memoryview, width: int) -> Coded:
    """Code bytes as elements of `width` bytes, in the way that takes the fewest."""
    elements = np.frombuffer(content, f"<u{width}")
    forms = list(_likely(elements))
    sizes = [_coded(content, elements, form, _quick).size for form in forms]
    best = _coded(content, elements, forms[int(np.argmin(sizes))], _smallest)
    if width > 1 and not (best.kind & loader.SPARSE and len(content) > _SMALL):
        single = np.frombuffer(content, np.uint8)  # finds elements that repeat in a row
        whole = _coded(content, single, _Form(None, None), _smallest)
        best = min(best, whole, key=lambda coded: coded.size)
    return best


@dataclass(frozen=True)
class _Form:
    """The value that is left out, None if none is, and the codebook, if there is one."""

    fill: int | None
    book: _Elements | None


def _likely(elements: _Elements) -> Iterator[_Form]:
    """The forms worth trying."""
    yield _Form(None, None)
    if len(elements) < 2:
        return
    book = _distinct(elements)
    if book is not None and len(book) < len(elements):
        yield _Form(None, book)
    sample = elements[:: max(1, len(elements) // _SAMPLE)]
    values, counts = np.unique(sample, return_counts=True)
    fill = int(values[np.argmax(counts)])
    if counts.max() * 8 < len(sample):
        return  # gaps cost more than they save long before one element in eight is left out
    yield _Form(fill, None)
    if book is not None:
        yield _Form(fill, book[book != fill])


def _distinct(elements: _Elements) -> _Elements | None:
    """The values there are, in order; None if there are too many for a codebook to pay."""
    most = min(_MOST_CODES, len(elements) // 2)
    known = np.unique(elements[:: max(1, len(elements) // _SAMPLE)])
    for start in range(0, len(elements), _BLOCK):
        if len(known) > most:
            return None
        block = elements[start : start + _BLOCK]
        places = np.minimum(np.searchsorted(known, block), len(known) - 1)
        new = block[known[places] != block]
        if len(new):
            known = np.union1d(known, new)
    return known if len(known) <= most else None


def _coded(content: memoryview, elements: _Elements, form: _Form, stream: _Coder) -> Coded:
    width, count = elements.itemsize, len(elements)
    kind, gaps, fill, values, streams = 0, 0, b"", elements, list[_Stream]()
    if form.fill is not None:
        kind |= loader.SPARSE
        kept = elements != form.fill
        steps = _gaps(kept)
        gaps, fill, values = len(steps), form.fill.to_bytes(width, "little"), elements[kept]
        streams += [stream(steps)] if gaps else []
    gap_bytes, book_bytes, codes = _length(streams), 0, 0
    if form.book is not None and len(values):
        kind |= loader.CODEBOOK
        codes, book = len(form.book), form.book
        streams.append(stream(np.concatenate(_planes(book))))
        book_bytes = len(streams[-1][1])
        narrow = np.uint8 if codes <= 256 else np.dtype("<u2")
        values = _in_blocks(values, book, narrow)
    streams += [stream(plane) for plane in _planes(values)] if len(values) else []
    parts = gap_bytes, book_bytes, _length(streams) - gap_bytes - book_bytes
    checksum = zlib.crc32(content)
    return Coded(
        kind, width, count, checksum, gaps, len(values), fill, codes, tuple(streams), parts
    )


def _length(streams: list[_Stream]) -> int:
    return sum(len(content) for _, content in streams)


def _in_blocks(values: _Elements, book: _Elements, narrow: npt.DTypeLike) -> _Elements:
    """Each value's place in the codebook."""
    codes = np.empty(len(values), narrow)
    for start in range(0, len(values), _BLOCK):
        codes[start : start + _BLOCK] = np.searchsorted(book, values[start : start + _BLOCK])
    return codes


def _gaps(kept: npt.NDArray[np.bool_]) -> _Bytes:
    """How many are left out before each that is kept, with fillers of 255; the last are implied."""
    pieces, open_gap = [], 0
    for start in range(0, len(kept), _BLOCK):
        places = np.flatnonzero(kept[start : start + _BLOCK])
        gaps = np.diff(places, prepend=-1 - open_gap) - 1
        fillers = gaps // 255
        steps = np.full(len(gaps) + int(fillers.sum()), 255, np.uint8)
        steps[np.cumsum(fillers + 1) - 1] = gaps % 255
        pieces.append(steps)
        length = min(_BLOCK, len(kept) - start)
        open_gap = length - 1 - int(places[-1]) if len(places) else open_gap + length
    return np.concatenate(pieces)


def _planes(elements: _Elements) -> list[_Bytes]:
    """The first bytes of all elements, the second bytes, and so on."""
    rows = elements.view(np.uint8).reshape(-1, elements.itemsize)
    return [np.ascontiguousarray(rows[:, place]) for place in range(elements.itemsize)]


def _quick(content: _Bytes) -> _Stream:
    """Huffman codes, to compare forms by."""
    coded = _deflated(content.data, zlib.Z_HUFFMAN_ONLY)
    return min((loader.STORED, content.tobytes()), (loader.DEFLATED, coded), key=_bytes_of)


def _smallest(content: _Bytes) -> _Stream:
    """The smallest coding of a stream; repetitions are looked for in a sample if it is long."""
    best, sample = _quick(content), _sample(content)
    plain = _quick(sample) if len(sample) < len(content) else best
    repeating = _deflated(sample.data, zlib.Z_DEFAULT_STRATEGY)
    if len(repeating) >= _WORTHWHILE * len(plain[1]):
        return best
    thorough = _lzma(sample.data)
    if len(thorough) < (1 - _LZMA_GAIN) * len(repeating):
        coded = loader.LZMA, thorough if sample is content else _lzma(content.data)
    else:
        whole = repeating if sample is content else _deflated(content.data, zlib.Z_DEFAULT_STRATEGY)
        coded = loader.DEFLATED, whole
    return min(best, coded, key=_bytes_of)


def _bytes_of(stream: _Stream) -> int:
    return len(stream[1])


def _sample(content: _Bytes) -> _Bytes:
    if len(content) <= _TRY_WHOLE:
        return content
    starts = np.linspace(0, len(content) - _SAMPLE, _SAMPLES).astype(int)
    return np.concatenate([content[start : start + _SAMPLE] for start in starts])


def _deflated(raw: memoryview, strategy: int) -> bytes:
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9, strategy)
    return deflate.compress(raw) + deflate.flush()


def _lzma(raw: memoryview) -> bytes:
    return lzma.compress(raw, format=lzma.FORMAT_RAW, filters=loader.LZMA_FILTERS)
