"""Damaged, lying and foreign files are refused in one clear line; memory stays bounded."""

from __future__ import annotations

import base64
import hashlib
import io
import lzma
import struct
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from graphopt.errors import ModelError
from graphopt.ir import Graph
from graphopt.packed import is_packed, pack
from graphopt.packed.loader import (
    CODEBOOK,
    COPY,
    LZMA_FILTERS,
    MAGIC,
    MOST_EXPANSION,
    PREAMBLE,
    SPARSE,
    VERSION,
    PackedError,
    read_index,
    restore,
    restored_pieces,
)
from tests.cli.calling import Run
from tests.samples import convnet

_MUTATIONS = 6000


def _of_every_kind() -> bytes:
    """A model whose packed form has segments of all kinds and streams of all codecs."""
    rng = np.random.default_rng(0)
    dense = rng.standard_normal(300).astype(np.float32)
    sparse = np.where(rng.random(600) < 0.8, 0, rng.standard_normal(600)).astype(np.float32)
    shared = rng.integers(0, 9, 900).astype(np.float32) / 7
    both = np.where(rng.random(900) < 0.9, np.float32(0), shared).astype(np.float32)
    wide = rng.permutation(np.repeat(rng.standard_normal(400).astype(np.float32), 20))
    table = np.tile(rng.standard_normal(64).astype(np.float32), 200)
    arrays: tuple[np.ndarray, ...] = (dense, sparse, shared, both, both, wide, table)
    tensors = [numpy_helper.from_array(array, f"w{n}") for n, array in enumerate(arrays)]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y], tensors)
    return helper.make_model(graph).SerializeToString()


@pytest.fixture(scope="module")
def original() -> bytes:
    return _of_every_kind()


@pytest.fixture(scope="module")
def packed(original: bytes, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("packed") / "m.gopt"
    pack(original, path)
    return path.read_bytes()


def _header(packed: bytes) -> tuple[bytes, bytes]:
    """The header's content, and what follows it."""
    length = PREAMBLE.unpack_from(packed)[2]
    coded = packed[PREAMBLE.size : PREAMBLE.size + length]
    return zlib.decompress(coded, -15), packed[PREAMBLE.size + length :]


def _with_header(content: bytes, streams: bytes) -> bytes:
    """A file whose header is whole, whatever it says."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    coded = deflate.compress(content) + deflate.flush()
    return PREAMBLE.pack(MAGIC, VERSION, len(coded), zlib.crc32(coded)) + coded + streams


def test_sample_has_every_kind(packed: bytes, original: bytes) -> None:
    assert restore(packed) == {"": original}
    header, streams = _header(packed)
    assert restore(_with_header(header, streams)) == {"": original}


def _restored_or_refused(damaged: bytes, original: bytes) -> bool:
    """Whether it is refused; else nothing that matters was hit."""
    try:
        restored = restore(damaged)
    except PackedError:
        return True
    assert restored.get("") == original
    return False


def _mutations(packed: bytes, seed: int, count: int) -> Iterator[bytes]:
    """Bits flipped, bytes replaced, pieces cut, doubled, moved and zeroed."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        damaged = bytearray(packed)
        for _ in range(int(rng.integers(1, 4))):
            kind, place = int(rng.integers(0, 6)), int(rng.integers(0, len(damaged)))
            end = min(len(damaged), place + int(rng.integers(1, 40)))
            if kind == 0:
                damaged[place] ^= 1 << int(rng.integers(0, 8))
            elif kind == 1:
                damaged[place] = int(rng.choice([0, 1, 127, 128, 255]))
            elif kind == 2:
                del damaged[place:end]
            elif kind == 3:
                damaged[place:place] = damaged[place:end]
            elif kind == 4:
                damaged[place:end] = bytes(end - place)
            else:
                damaged[place:end] = rng.bytes(end - place)
            if not damaged:
                break
        yield bytes(damaged)


def test_mutated_files(packed: bytes, original: bytes) -> None:
    """Any damage is found out, or harms nothing."""
    refused = sum(_restored_or_refused(m, original) for m in _mutations(packed, 0, _MUTATIONS))
    assert refused > 0.9 * _MUTATIONS


def test_mutated_headers(packed: bytes) -> None:
    """The header's own checksum is right, so that what it says is reached; it cannot do harm.

    A header may describe another model whose checksums are right, e.g. with two segments swapped.
    """
    header, streams = _header(packed)
    tracemalloc.start()
    for mutated in _mutations(header, 1, _MUTATIONS):
        damaged = _with_header(mutated, streams)
        try:
            restored = sum(map(len, restore(damaged).values()))
        except PackedError:
            restored = 0
        assert restored <= MOST_EXPANSION * len(damaged)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 80e6


@settings(max_examples=400, deadline=None)
@given(content=st.binary(max_size=200), streams=st.binary(max_size=200))
def test_any_header(content: bytes, streams: bytes) -> None:
    with pytest.raises(PackedError):
        restore(_with_header(content, streams))


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=300))
def test_any_bytes(content: bytes) -> None:
    for begin in (b"", MAGIC, MAGIC + struct.pack("<H", VERSION)):
        with pytest.raises(PackedError):
            restore(begin + content)


def test_every_truncation(packed: bytes, original: bytes) -> None:
    for length in range(0, len(packed), 7):
        assert _restored_or_refused(packed[:length], original)


def _numbers(*values: int) -> bytes:
    out = bytearray()
    for value in values:
        while value > 127:
            out.append(value & 127 | 128)
            value >>= 7
        out.append(value)
    return bytes(out)


_FRAME = (0, 0, 1, 0xD202EF8D, 0, 1)  # one zero byte, stored
_ZEROS = b"\0" * 4


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (_numbers(1, 0, 0, 0, 2**60, 0, 0, 1), "at most"),
        (_numbers(1, 0, 0, 0, 10**5, 0, 0, 2**40), "at most"),
        (_numbers(2**50), "at most"),
        (_numbers(1, 2**40), "at most"),
        (_numbers(1, 0, *_FRAME, 2**40), "at most"),
        (_numbers(1, 0, *_FRAME, 1, 5, 0), "at most"),
        (_numbers(1, 0, COPY, 0), "at most"),
        (_numbers(1, 0, *_FRAME, 1, 0, COPY, 0), "at most"),
        (_numbers(1, 0, *_FRAME, 1, 0, CODEBOOK, 0, 3, 0, 4, 0, 4, 0, 3), "at most"),
        (_numbers(1, 0, *_FRAME, 1, 0, SPARSE, 0, 3, 0, 9), "at most"),
        (_numbers(1, 0, *_FRAME, 1, 0, SPARSE, 0, 3, 0, 1, 2), "at most"),
        (_numbers(1, 0, *_FRAME, 1, 0, SPARSE, 0, 10000, 0, 0, 0) + b"\0", "checksum"),
        (_numbers(1, 0, 0, 0, 1, 5, 0, 1, 0), "checksum"),
        (_numbers(1, 0, 0, 0, 9, 5, 0, 1, 0), "too early"),
        (_numbers(1, 0, 0, 0, 9, 5, 1, 4, 0), "a segment: .*: damaged"),
        (_numbers(1, 0, 0, 0, 9, 5, 2, 4, 0), "a segment: .*: damaged"),
        (_numbers(1, 0, *_FRAME), "too early"),
        (_numbers(0), "no model"),
        (_numbers(1, 0, *_FRAME, 1, 0, 0, 0, 3, 0, 0, 4), "at most 3"),
        (_numbers(1, 0, *_FRAME) + b"\xff" * 11, "too early"),
        (_numbers(1, 3) + b"../" + _numbers(*_FRAME, 0), "folder"),
        (_numbers(1, 4) + b"/etc" + _numbers(*_FRAME, 0), "folder"),
        (_numbers(1, 4) + b"C:\\x" + _numbers(*_FRAME, 0), "folder"),
        (_numbers(2, 0, *_FRAME, 0, 0, *_FRAME, 0), "folder"),
        (_numbers(1, 0, *_FRAME, 3, *(0, 0, 3, 15000, 0, 0, 4) * 3), "more than 4096|at most"),
    ],
)  # fmt: skip
def test_lying_headers(header: bytes, says: str) -> None:
    with pytest.raises(PackedError, match=says):
        restore(_with_header(header, _ZEROS))


def test_more_segments_than_bytes() -> None:
    """Each takes time: copies of one, a bit or two in a deflated header, come to an end."""
    copies = _numbers(0, COPY, 0) * 20_000
    more = np.random.default_rng(0).bytes(1000)  # no header may be 64 times its deflated size
    refused = _with_header(_numbers(1, 0, *_FRAME, 20_001, 0, *_FRAME) + copies + more, b"\0\0")
    assert len(refused) < 2000
    with pytest.raises(PackedError, match="at most"):
        restore(refused)
    assert restore(refused + bytes(20_002 - len(refused))) == {"": bytes(20_002)}


def test_what_follows_the_end_of_a_stream() -> None:
    """It is not gone through, whatever is missing."""
    size = 20_000_000
    empty = b"\3\0"  # one last block, without content
    packed = _with_header(_numbers(1, 0, 0, 0, size, 5, 1, size, 0), empty + bytes(size - 2))
    tracemalloc.start()
    with pytest.raises(PackedError, match="ends too early"):
        restore(packed)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6


class _Impatient(io.BytesIO):
    """Fails where there is nothing to be read, time and again."""

    in_vain = 0

    def read(self, size: int | None = -1, /) -> bytes:
        piece = super().read(size)
        self.in_vain += not piece
        assert self.in_vain < 100, "reads on and on"
        return piece


@pytest.mark.parametrize("codec", [0, 1, 2])
def test_file_that_becomes_shorter(codec: int) -> None:
    """Its length was right when it was opened; no codec waits for more."""
    raw = np.random.default_rng(0).integers(0, 99, 300_000).astype(np.uint8).tobytes()
    stream = (
        raw,
        zlib.compress(raw, wbits=-15),
        lzma.compress(raw, lzma.FORMAT_RAW, -1, None, LZMA_FILTERS),
    )[codec]
    packed = _with_header(_numbers(1, 0, 0, 0, 300_000, 5, codec, len(stream), 0), stream)
    file = _Impatient(packed)
    (index,) = read_index(file)
    file.truncate(len(packed) - 100_000)
    with pytest.raises(PackedError, match="a segment"):
        list(restored_pieces(file, index))


# A segment of every kind and a stream of every codec, as version 1 has always been written.
_VERSION_1 = (
    "iAPURR1FFm0RU(K005?Git}S+U|^Wa__*`yeh$V`HWdbj7RD{N*8SuI()^4}Cm1`PoZQN;r3F;Qz^KBY1%iyS{7g)1"
    "nBFfr{Ev&3L4+}vpPA_f%Z@7-I(QWoK?<1}6d8CJMfq8n`571v@a%eg;yEKz0RZFRvwGmn#lyu|A;egz#1fR6Q!2!m"
    "uGP=Tp(w!U#8htJ)xxN?hK=I{BbaOGwSY})4=2YOCNS5?YXhg&8zGJxEMTs&*8?FWt_g^HhKJ(-j{p;pYwC4?CyF0r"
    "6Bic;2cr-R7ZV3#5>TKLS-^=&Kn4J8zW_deMhCvV@*_Xr)z&?sAql_zBDp?!>83yCb8<iaCp5oR`Jun+jvv2nMJYW_"
    "%@n}w3ShnidY`}GbvwV0R13ct@}a&x!O}hyafLsZo&&x{=&nCAN-Do0`LjOKNoPNWiNHPhRX)Em_G`ZiTk5{mdSN~*"
    "JAuC+GFHCg3nRV-!HEq3APfVsOH;xpvH!T(P4X<W3V~>^;hUp2RfQ7IE%^he6;tYA+J<P=100z>AoN&LC0^2kGHl1d"
    "MxuqJ)?TMWR&9ule%n_Sekq&*T5U*A3orHH2k3ay%^qj(ICzS41-2wgWhSkz_Xcs(B)($g<{wd-%cdiU9JNTRVeE+`"
    "JC!3rp$_eo4r_%0VOVm){7*Zt8eO~;6^uPR7X`rq0l**t1fgVlCVv)fP(83iN}G9Vr{b#b?gs!RCATF2Nl9%<01}eh"
    "5&%9vK0gJ)0RaF22!pT#_Rs7lRvWi)cV;l_7NG79*WGPxt<~JQ3#OZ^?vN2@MqN4xMewRay~(+qHypA%&s+13hL@!6"
    "(9I<gRB{(5%}w3b4iM=!DDO^%Si%j{>e}sgJKc_n4v@n;fvT8Zl(z>c9|-{&4*>uW0SFKP0}=xW3=a`ELI))RCI=TR"
    "2^#<cB_+2>No^96+de)%1;GIU0001jAnE_;U}c(#Sur(B?cfGK0B8UJa2!W>fW>d(cy}9bj(Ai{<WHZ6tqM$P9<_1x"
    "ncvceO9Tt7Z5}lLdGa1uEv`tTjeu!css#R~f2#q{TCecig~AHeOgZ<2>I|~(uROwM+6)S{!c$0$GOmk-S`z38Jwe6I"
    "s^5_S00"
)


def test_files_of_version_1_are_read() -> None:
    packed = base64.b85decode(_VERSION_1)
    assert hashlib.sha256(restore(packed)[""]).hexdigest() == (
        "2e98cd98efd9cfd6e52b1fb92cc7fe40cf55419d9109d87dfd1f6e5d8bef8df7"
    )


def test_code_without_entry() -> None:
    header = _numbers(1, 0, *_FRAME, 1, 0, CODEBOOK, 0, 3, 0, 1, 0, 1, 0, 3)
    with pytest.raises(PackedError, match="without an entry"):
        restore(_with_header(header, b"\0" + b"A" + b"\0\1\0"))


def test_gaps_past_the_end() -> None:
    header = _numbers(1, 0, *_FRAME, 1, 0, SPARSE, 0, 9, 0, 2, 2) + b"\0" + _numbers(0, 2, 0, 2)
    with pytest.raises(PackedError, match="other elements"):
        restore(_with_header(header, b"\0" + b"\5\5" + b"AB"))


def test_small_file_cannot_ask_for_much(tmp_path: Path) -> None:
    """So packing a model of zeros fills the file up to a 4096th of the model."""
    zeros = numpy_helper.from_array(np.zeros(2_000_000, np.float32), "w")
    model = convnet()
    model.graph.initializer.append(zeros)
    raw = model.SerializeToString()
    packing = pack(raw, tmp_path / "m.gopt")
    assert len(raw) / MOST_EXPANSION <= packing.size < 0.01 * len(raw)
    assert restore(tmp_path / "m.gopt") == {"": raw}


def test_later_version_says_what_to_do(packed: bytes) -> None:
    later = packed[:8] + struct.pack("<H", 7) + packed[10:]
    with pytest.raises(PackedError, match=r"version 7 .* reads version 1; update graphopt"):
        restore(later)


@pytest.mark.parametrize("verb", ["unpack", "bench", "inspect", "optimize"])
def test_command_line_refuses_damage_in_one_line(
    verb: str, run: Run, packed: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "bad.gopt"
    path.write_bytes(packed[:-3])
    code, _, said = run(verb, path, *([tmp_path / "m.onnx"] if verb == "unpack" else []))
    assert code == 2
    assert "bad.gopt" in said
    assert len(said.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_command_line_round_trip(run: Run, original: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(original)
    code, _, said = run("pack", tmp_path / "m.onnx", tmp_path / "m.gopt")
    assert (code, said) == (0, "")
    assert is_packed(tmp_path / "m.gopt")
    code, _, said = run("unpack", tmp_path / "m.gopt", tmp_path / "again.onnx")
    assert (code, said) == (0, "")
    assert (tmp_path / "again.onnx").read_bytes() == original


def test_command_line_refuses_nonsense(run: Run, original: bytes, tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(original)
    for arguments, says in (
        (("pack", model, model), "replace its own source"),
        (("pack", model, tmp_path), "is a directory"),
        (("pack", model, tmp_path / "a" / "m.gopt"), "no directory"),
        (("pack", tmp_path / "absent.onnx", tmp_path / "m.gopt"), "No such file"),
        (("unpack", model, tmp_path / "n.onnx"), "not a packed model"),
        (("unpack", tmp_path / "absent.gopt", tmp_path / "n.onnx"), "No such file"),
    ):
        code, _, said = run(*arguments)
        assert code == 2
        assert says in said
    assert list(tmp_path.iterdir()) == [model]


def test_loading_names_the_file(packed: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.gopt").write_bytes(packed[:-3])
    with pytest.raises(ModelError, match=r"bad\.gopt: .* cut off; copy"):
        Graph.load(tmp_path / "bad.gopt")
