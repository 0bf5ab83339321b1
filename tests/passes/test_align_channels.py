"""align-channels: depthwise convolutions of an odd number of channels."""

from __future__ import annotations

import pytest

from graphopt.errors import RecipeError
from passes.align_channels import AlignChannels
from tests.asserting import apply_pass, assert_rewrites, assert_unchanged, operators, parse


def net(body: str, channels: int, extra: str = "") -> str:
    c = channels
    return f"""main (float[2,8,6,6] x) => (float[2,5,n,m] y{extra})
        <float[{c},8,1,1] w1, float[{c}] b1, float[{c},1,3,3] w2, float[{c}] b2,
         float[5,{c},1,1] w3, float[5] b3, float[5,{c},3,3] v3>
        {{ {body} }}"""


BODIES = {
    "plain": "a = Conv (x, w1, b1) d = Conv <group=@> (a, w2, b2) y = Conv (d, w3, b3)",
    "no bias": "a = Conv (x, w1) d = Conv <group=@> (a, w2) y = Conv (d, w3)",
    "activations": """a = Conv (x, w1, b1) r = Sigmoid (a)
        d = Conv <group=@, pads=[1,1,1,1], strides=[2,2]> (r, w2, b2)
        h = HardSwish (d) t = Tanh (h) y = Conv (t, w3, b3)""",
    "pads after": "a = Conv (x, w1) d = Conv <group=@> (a, w2, b2) "
    "y = Conv <pads=[1,1,1,1]> (d, v3)",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
@pytest.mark.parametrize(("multiple", "channels"), [(4, 20), (16, 32)])
def test_is_padded(body: str, multiple: int, channels: int) -> None:
    size = 18 if multiple == 4 else 30
    before, after = (net(body.replace("@", str(count)), count) for count in (size, channels))
    assert_rewrites(before, after, AlignChannels(multiple=multiple))


STAYS = {
    "an even number": ("a = Conv (x, w1) d = Conv <group=20> (a, w2) y = Conv (d, w3)", 20),
    "too few": ("a = Conv (x, w1) d = Conv <group=5> (a, w2) y = Conv (d, w3)", 5),
    "another reader": (
        """a = Conv (x, w1) d = Conv <group=18> (a, w2) e = Conv <group=18> (a, w2)
        s = Add (d, e) y = Conv (s, w3)""",
        18,
    ),
    "no convolution after": (
        """a = Conv (x, w1) d = Conv <group=18> (a, w2) s = Softmax <axis=1> (d)
        y = Conv (s, w3)""",
        18,
    ),
    "no convolution before": (
        "a = Conv (x, w1) s = Softmax <axis=1> (a) d = Conv <group=18> (s, w2) y = Conv (d, w3)",
        18,
    ),
}


@pytest.mark.parametrize(("body", "channels"), STAYS.values(), ids=STAYS.keys())
def test_stays(body: str, channels: int) -> None:
    assert_unchanged(net(body, channels), AlignChannels())


def test_an_output_between_stays() -> None:
    body = "a = Conv (x, w1) d = Conv <group=18> (a, w2) y = Conv (d, w3)"
    assert_unchanged(net(body, 18, ", float[2,18,n,m] d"), AlignChannels())


def test_shared_weights_stay() -> None:
    body = """a = Conv (x, w1) d = Conv <group=18> (a, w2) p = Conv (d, w3)
        e = Conv (x, w1) f = Conv <group=18> (e, w2) q = Conv (f, w3) y = Add (p, q)"""
    graph = apply_pass(parse(net(body, 18)), AlignChannels())
    assert operators(graph).count("Conv") == 6
    assert all(graph.shape(name) for name in ("a", "d", "e", "f"))


@pytest.mark.parametrize("multiple", [0, -4, 6])
def test_the_multiple_is_checked(multiple: int) -> None:
    with pytest.raises(RecipeError, match="multiple of 4"):
        AlignChannels(multiple=multiple)
