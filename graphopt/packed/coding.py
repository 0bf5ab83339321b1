"""Choose the smallest coding of a tensor's bytes: planes or codebook, dense or sparse.

Forms are compared by sizes alone, and dense planes are never laid out, so that it takes little more
memory than what comes out.
"""

from __future__ import annotations

import io
import lzma
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graphopt.packed import loader

__all__ = ["Coded", "code"]

_Bytes = npt.NDArray[np.uint8]
_Elements = npt.NDArray[np.unsignedinteger]
_Stream = tuple[int, bytes]

_GAPS, _BOOK, _VALUES = range(3)  # parts of a segment
_BLOCK = 1 << 18  # elements looked at together
_MOST_CODES = 1 << 16
_SMALL = 1 << 16  # bytes of a sparse tensor on which repetitions are worth a try
_FED = 1 << 20  # bytes deflated at a time
_TRY_WHOLE = 1 << 20  # of a longer stream, a sample says what is worth trying
_SAMPLES, _SAMPLE = 4, 1 << 16
_WORTHWHILE = 0.99  # what repetitions must bring for more to be tried
_MISLED = 1.15  # how much larger a sample may make what it is of seem
_LZMA_GAIN = 1 / 16  # it decodes much slower than deflate
_LEAST_DICTIONARY = 1 << 12
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
    chosen = forms[0]
    if len(forms) > 1:
        chosen = forms[int(np.argmin([_quick_size(elements, form) for form in forms]))]
    best = _coded(content, elements, chosen)
    if width > 1 and not (best.kind & loader.SPARSE and len(content) > _SMALL):
        single = np.frombuffer(content, np.uint8)  # finds elements that repeat in a row
        if _likely_size(single) < best.size:
            whole = _coded(content, single, _Form(None, None))
            best = min(best, whole, key=lambda coded: coded.size)
    return best


def _likely_size(single: _Bytes) -> float:
    """The bytes that a segment of single bytes takes, or fewer: a sample may mislead."""
    sample = _sample(single)
    repeating = _repeating(sample)
    if repeating is None:
        return _quick_size(single, _Form(None, None))
    return len(single) / len(sample) * min(len(repeating), len(_lzma(sample))) / _MISLED


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


def _contents(elements: _Elements, form: _Form) -> Iterator[tuple[int, _Bytes]]:
    """What the streams of a form hold, one after the other, and which part each belongs to."""
    kept = None
    if form.fill is not None:
        kept = elements != form.fill
        if kept.any():
            yield _GAPS, _gaps(kept)
        else:
            return
    if form.book is not None:
        yield _BOOK, np.concatenate(list(_planes(form.book, None)))
        elements, kept = _in_blocks(elements, kept, form.book), None
    for plane in _planes(elements, kept) if len(elements) else ():
        yield _VALUES, plane


def _quick_size(elements: _Elements, form: _Form) -> int:
    """Bytes that a form takes with Huffman codes alone, about."""
    streams = (content for _, content in _contents(elements, form))
    return _SEGMENT_BYTES + sum(_STREAM_BYTES + _huffman_size(stream) for stream in streams)


def _coded(content: memoryview, elements: _Elements, form: _Form) -> Coded:
    streams, lengths, gaps, kept = list[_Stream](), [0, 0, 0], 0, len(elements)
    for part, piece in _contents(elements, form):
        streams.append(_smallest(piece))
        lengths[part] += len(streams[-1][1])
        gaps = len(piece) if part == _GAPS else gaps
    if form.fill is not None:
        kept = int(np.count_nonzero(elements != form.fill))
    fill = b"" if form.fill is None else form.fill.to_bytes(elements.itemsize, "little")
    codes = len(form.book) if form.book is not None and kept else 0
    kind = loader.SPARSE * bool(fill) | loader.CODEBOOK * bool(codes)
    parts = lengths[_GAPS], lengths[_BOOK], lengths[_VALUES]
    checksum = zlib.crc32(content)
    return Coded(
        kind, elements.itemsize, len(elements), checksum, gaps, kept, fill, codes, tuple(streams),
        parts,
    )  # fmt: skip


def _in_blocks(
    elements: _Elements, kept: npt.NDArray[np.bool_] | None, book: _Elements
) -> _Elements:
    """The place in the codebook of each value that is kept."""
    count = len(elements) if kept is None else int(np.count_nonzero(kept))
    codes = np.empty(count, np.uint8 if len(book) <= 256 else np.dtype("<u2"))
    done = 0
    for start in range(0, len(elements), _BLOCK):
        block = elements[start : start + _BLOCK]
        block = block if kept is None else block[kept[start : start + _BLOCK]]
        codes[done : done + len(block)] = np.searchsorted(book, block)
        done += len(block)
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


def _planes(elements: _Elements, kept: npt.NDArray[np.bool_] | None) -> Iterator[_Bytes]:
    """The first bytes of all elements that are kept, the second bytes, and so on."""
    rows = elements.view(np.uint8).reshape(-1, elements.itemsize)
    for place in range(elements.itemsize):
        plane = rows[:, place]
        yield plane if kept is None else plane[kept]


def _quick(content: _Bytes) -> _Stream:
    """Huffman codes alone, if they take less."""
    coded = _deflated(content, zlib.Z_HUFFMAN_ONLY)
    if len(coded) < len(content):
        return loader.DEFLATED, coded
    return loader.STORED, content.tobytes()


def _smallest(content: _Bytes) -> _Stream:
    """The smallest coding of a stream; repetitions are looked for in a sample if it is long."""
    sample = _sample(content)
    repeating = _repeating(sample)
    if repeating is None:
        return _quick(content)
    thorough, short = _lzma(sample), sample is content
    if len(thorough) < (1 - _LZMA_GAIN) * len(repeating):
        coded = loader.LZMA, thorough if short else _lzma(content)
    else:
        whole = repeating if short else _deflated(content, zlib.Z_DEFAULT_STRATEGY)
        coded = loader.DEFLATED, whole
    return coded if len(coded[1]) < _huffman_size(content) else _quick(content)


def _repeating(sample: _Bytes) -> bytes | None:
    """What looking for repetitions makes of a sample, if it pays."""
    coded = _deflated(sample, zlib.Z_DEFAULT_STRATEGY)
    return coded if len(coded) < _WORTHWHILE * _huffman_size(sample) else None


def _sample(content: _Bytes) -> _Bytes:
    if len(content) <= _TRY_WHOLE:
        return content
    starts = np.linspace(0, len(content) - _SAMPLE, _SAMPLES).astype(int)
    return np.concatenate([content[start : start + _SAMPLE] for start in starts])


def _deflated(raw: _Bytes, strategy: int) -> bytes:
    coded = io.BytesIO()
    coded.writelines(_deflating(raw, strategy))
    return coded.getvalue()


def _huffman_size(raw: _Bytes) -> int:
    """How long it is with Huffman codes alone, or stored."""
    return min(len(raw), sum(map(len, _deflating(raw, zlib.Z_HUFFMAN_ONLY))))


def _deflating(raw: _Bytes, strategy: int) -> Iterator[bytes]:
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9, strategy)
    for start in range(0, len(raw), _FED):
        yield deflate.compress(np.ascontiguousarray(raw[start : start + _FED]).data)
    yield deflate.flush()


def _lzma(raw: _Bytes) -> bytes:
    raw, (known,) = np.ascontiguousarray(raw), loader.LZMA_FILTERS
    # Coding takes a dozen times the dictionary, which need not be larger than what is coded.
    size = min(known["dict_size"], max(_LEAST_DICTIONARY, len(raw)))
    filters = [{**known, "dict_size": size}]
    return lzma.compress(raw.data, format=lzma.FORMAT_RAW, filters=filters)
