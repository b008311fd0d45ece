"""The gates of the gated scan, inside a kernel. No twin: Triton. Truth: spec/reference/scan.py.

Nothing here needs libdevice, so the same source runs interpreted and compiles for every target.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LARGEST = tl.constexpr(126.0)  # 2^126: its reciprocal is normal, so both sigmoids stay finite and above zero


@triton.jit
def whereabouts(segments, D: tl.constexpr, C: tl.constexpr, W: tl.constexpr):
    """What a program works on: row b segments + segment of an array [b, segments, D], b, segment, channels, rows.

    Row and b are int64: they are multiplied by the length of a sequence.
    """
    WIDE: tl.constexpr = (D + C - 1) // C
    row, block = tl.program_id(0) // WIDE, tl.program_id(0) % WIDE
    channels, rows = block * C + tl.arange(0, C)[None, :], tl.arange(0, W)[:, None]
    return row.to(tl.int64), (row // segments).to(tl.int64), row % segments, channels, rows


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)); exp may overflow, to a sigmoid of 0."""
    root = tl.rsqrt(1.0 + tl.exp2(x * -LOG2_E))
    return root * root


@triton.jit
def two_sigmoids(x):
    """(sigmoid(x), sigmoid(-x)) from one e = exp(-x), each to relative accuracy: 1 / (1 + e), e / (1 + e)."""
    e = tl.exp2(tl.minimum(x * -LOG2_E, LARGEST))
    root = tl.rsqrt(1.0 + e)
    sigmoid_p = root * root
    return sigmoid_p, e * sigmoid_p


@triton.jit
def tanh(x, EXACT: tl.constexpr):
    """2 sigmoid(2 x) - 1, right to an ulp of 1; where EXACT also to an ulp of itself, by x + x^3 P(x^2) near 0.

    P is a minimax fit on |x| <= 1/2. An x of 16 bits is off by more than an ulp of 1 from 1e-4 on, and below that
    the state, of the size of 1 or else 0, does not notice.
    """
    root = tl.rsqrt(1.0 + tl.exp2(x * (-2.0 * LOG2_E)))
    far = 2.0 * root * root - 1.0
    if EXACT:
        y = x * x
        series = ((0.0172569640 * y - 0.0530529357) * y + 0.1332598776) * y - 0.3333314955
        return tl.where(y < 0.25, x + x * y * series, far)
    else:
        return far


@triton.jit
def widen(x):
    """To the format of the state: float32, or float64 where the pre-activations are."""
    return x if x.dtype == tl.float64 else x.to(tl.float32)


@triton.jit
def row_word(words, left, beyond: tl.constexpr, PRESENT: tl.constexpr):
    """The masks of each row, `beyond` after the end; 0 where there is no such mask.

    Few enough entries that Triton makes them in whatever layout they are used in.
    """
    return tl.load(words, mask=left > 0, other=beyond) if PRESENT else 0


@triton.jit
def is_marked(word, r: tl.constexpr):
    """Whether step r of a row is marked: byte r of its word."""
    return (word >> (8 * r)) & 1 != 0


@triton.jit
def is_still(padding, left, r: tl.constexpr, PADDED: tl.constexpr):
    """Whether step r of a row changes nothing: it is padding, or beyond the end."""
    return is_marked(padding, r) if PADDED else r >= left


@triton.jit
def masked_step(
    decay, drive, reset, padding, left, r: tl.constexpr,
    RESETS: tl.constexpr, PADDED: tl.constexpr, STILLS: tl.constexpr,
):  # fmt: skip
    """Decay and drive where a step clears the state before it, (0, drive), or changes nothing, (1, 0)."""
    if RESETS:
        decay = tl.where(is_marked(reset, r), 0.0, decay)
    if STILLS:
        still = is_still(padding, left, r, PADDED)
        decay, drive = tl.where(still, 1.0, decay), tl.where(still, 0.0, drive)
    return decay, drive


@triton.jit
def compose(product, end, later_product, later_end):
    """Two stretches of time as one: h -> product h + end, then h -> later_product h + later_end."""
    return product * later_product, end * later_product + later_end


@triton.jit
def compose_beside(product, end, before_product, before_end, p, e, bp, be):
    """`compose`, and beside it what precedes each row: a scan's inclusive and exclusive results in one."""
    return product * p, end * p + e, product * bp, end * bp + be
