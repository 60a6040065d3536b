"""How a block's bytes become numbers inside a Triton kernel: one function a ggml format.

All formats are seen in the same terms. A *unit* is 32 weights: two *runs* of 16 consecutive ones,
low and high, which share 16 bytes of codes wherever codes are nibbles. A run has one scale and one
offset: weight = scale * value - offset, where values are signed bytes, four to a word. Of the bytes
of a block, the codes are one contiguous part and the header (scales) the other, so that the two may
also lie apart. The torch functions of hybrid_k2.quant are the specification. Knows no matrices.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hybrid_k2.kernels.intrinsics import permute

_NIBBLES = tl.constexpr(0x0F0F0F0F)


@triton.jit
def low_run(unit, INTERLEAVED: tl.constexpr):
    """The number of a unit's low run among the row's runs; its high run is INTERLEAVED further."""
    return unit // INTERLEAVED * (2 * INTERLEAVED) + unit % INTERLEAVED


@triton.jit
def values_of(words):
    """int32 [U, 4] -> their sixteen signed bytes as float32 [U, 16]."""
    even = tl.join((words << 24) >> 24, (words << 8) >> 24)
    odd = tl.join((words << 16) >> 24, words >> 24)
    return tl.join(even, odd).reshape(words.shape[0], 16).to(tl.float32)


@triton.jit
def _sixteen(codes, offset, ALIGNED: tl.constexpr):
    """The 16 bytes at `offset` (even) of each block's codes, as words: int32 [U, 4].

    ALIGNED: codes are pointers to int32, and offsets multiples of 4; else to uint16, eight loads.
    """
    word = tl.arange(0, 4)[None, :]
    if ALIGNED:
        return tl.load(codes[:, None] + (offset // 4)[:, None] + word)
    halves = codes[:, None] + (offset // 2)[:, None] + 2 * word
    return tl.load(halves).to(tl.int32) | (tl.load(halves + 1).to(tl.int32) << 16)


# Each function below decodes U units. It takes pointers [U] to the codes of a unit's block and to
# the block's header (as bytes, and as float16), and the unit's place in the block, [U]. It returns
# the words of the low and of the high run, int32 [U, 4], then their scales and their offsets,
# float32 [U].


@triton.jit
def decode_q8_0(codes, header, halves, unit, ALIGNED: tl.constexpr):
    scale = tl.load(halves).to(tl.float32)
    low = _sixteen(codes, 0 * unit, ALIGNED)
    high = _sixteen(codes, 0 * unit + 16, ALIGNED)
    return low, high, scale, scale, scale, scale


@triton.jit
def decode_q4_0(codes, header, halves, unit, ALIGNED: tl.constexpr):
    scale = tl.load(halves).to(tl.float32)
    code = _sixteen(codes, 0 * unit, ALIGNED)
    return code & _NIBBLES, (code >> 4) & _NIBBLES, scale, scale, 8 * scale, 8 * scale


@triton.jit
def decode_q4_1(codes, header, halves, unit, ALIGNED: tl.constexpr):
    scale = tl.load(halves).to(tl.float32)
    offset = -tl.load(halves + 1).to(tl.float32)
    code = _sixteen(codes, 0 * unit, ALIGNED)
    return code & _NIBBLES, (code >> 4) & _NIBBLES, scale, scale, offset, offset


@triton.jit
def _fifth_bits(bits):
    """16 bits at float16 pointers [U] -> words [U, 4] with 16 in every byte whose bit is set."""
    four = tl.load(bits).to(tl.uint16, bitcast=True).to(tl.int32)[:, None] >> (
        4 * tl.arange(0, 4)[None, :]
    )
    # The product puts bit i of four at bit 8 i; what else it sets is masked.
    return (((four & 15) * 0x00204081) & 0x01010101) << 4


@triton.jit
def decode_q5_0(codes, header, halves, unit, ALIGNED: tl.constexpr):
    scale = tl.load(halves).to(tl.float32)
    code = _sixteen(codes, 0 * unit, ALIGNED)
    low = (code & _NIBBLES) | _fifth_bits(halves + 1)
    high = ((code >> 4) & _NIBBLES) | _fifth_bits(halves + 2)
    return low, high, scale, scale, 16 * scale, 16 * scale


@triton.jit
def decode_q5_1(codes, header, halves, unit, ALIGNED: tl.constexpr):
    scale = tl.load(halves).to(tl.float32)
    offset = -tl.load(halves + 1).to(tl.float32)
    code = _sixteen(codes, 0 * unit, ALIGNED)
    low = (code & _NIBBLES) | _fifth_bits(halves + 2)
    high = ((code >> 4) & _NIBBLES) | _fifth_bits(halves + 3)
    return low, high, scale, scale, offset, offset


@triton.jit
def _two_bytes(halves):
    """The bytes at float16 pointers: int32, the second one above the first."""
    return tl.load(halves).to(tl.uint16, bitcast=True).to(tl.int32)


@triton.jit
def _scales_and_mins(halves, unit):
    """Of a unit of Q4_K or Q5_K: the scales of its two groups, then their minima, [U] each.

    The layout is that of hybrid_k2.quant.blocks.scales_and_mins.
    """
    d = tl.load(halves).to(tl.float32)
    dmin = tl.load(halves + 1).to(tl.float32)
    pair = halves + 2 + unit % 4 // 2  # of groups 0, 1 and 4, 5, or of 2, 3 and 6, 7
    first, second, third = _two_bytes(pair), _two_bytes(pair + 2), _two_bytes(pair + 4)
    # Both groups' six bits at once, in bits 0-5 and 8-13.
    is_plain = unit < 4
    scales = tl.where(is_plain, first, (third & 0x0F0F) | ((first >> 2) & 0x3030)) & 0x3F3F
    mins = tl.where(is_plain, second, ((third >> 4) & 0x0F0F) | ((second >> 2) & 0x3030)) & 0x3F3F
    low_scale, high_scale = (scales & 63).to(tl.float32), (scales >> 8).to(tl.float32)
    low_min, high_min = (mins & 63).to(tl.float32), (mins >> 8).to(tl.float32)
    return d * low_scale, d * high_scale, dmin * low_min, dmin * high_min


@triton.jit
def decode_q4_k(codes, header, halves, unit, ALIGNED: tl.constexpr):
    low_scale, high_scale, low_min, high_min = _scales_and_mins(halves, unit)
    code = _sixteen(codes, unit * 16, ALIGNED)
    return code & _NIBBLES, (code >> 4) & _NIBBLES, low_scale, high_scale, low_min, high_min


@triton.jit
def decode_q5_k(codes, header, halves, unit, ALIGNED: tl.constexpr):
    low_scale, high_scale, low_min, high_min = _scales_and_mins(halves, unit)
    code = _sixteen(codes, unit * 16 + 32, ALIGNED)
    fifth = _sixteen(codes, unit % 2 * 16, ALIGNED) >> (unit // 2 * 2)[:, None]
    low = (code & _NIBBLES) | ((fifth & 0x01010101) << 4)
    high = ((code >> 4) & _NIBBLES) | ((fifth & 0x02020202) << 3)
    return low, high, low_scale, high_scale, low_min, high_min


@triton.jit
def decode_q6_k(codes, header, halves, unit, ALIGNED: tl.constexpr):
    d = tl.load(halves + 8).to(tl.float32)
    scales = header + unit // 4 * 8 + unit % 4
    low_scale = d * tl.load(scales).to(tl.int8, bitcast=True).to(tl.float32)
    high_scale = d * tl.load(scales + 4).to(tl.int8, bitcast=True).to(tl.float32)
    code = _sixteen(codes, unit * 16, ALIGNED)
    top = _sixteen(codes, 128 + unit // 4 * 32 + unit % 2 * 16, ALIGNED)
    top = top >> (unit // 2 % 2 * 2)[:, None]
    low = (code & _NIBBLES) | ((top & 0x03030303) << 4)
    high = ((code >> 4) & _NIBBLES) | (top & 0x30303030)
    return low, high, low_scale, high_scale, 32 * low_scale, 32 * high_scale


@triton.jit
def _steps(code):
    """Words of eight nibbles -> IQ4_NL's step for the four low and for the four high ones.

    The table is gguf's IQ4_NL.kvalues, sixteen signed bytes in four words: a number below 8 picks
    from the first two, any other from the last two.
    """
    one = tl.full(code.shape, 1, tl.int32)
    below_8 = one * -1079142271, one * -152379953
    from_8 = one * 639175937, one * 1901675829
    which = 0x32103210 | ((code >> 1) & 0x44444444)  # byte i of the first result or of the second
    first = permute(permute(*below_8, code), permute(*from_8, code), which)
    code = code >> 16
    last = permute(permute(*below_8, code), permute(*from_8, code), which >> 16)
    return permute(first, last, one * 0x6420), permute(first, last, one * 0x7531)


@triton.jit
def decode_iq4_nl(codes, header, halves, unit, ALIGNED: tl.constexpr):
    scale = tl.load(halves).to(tl.float32)
    low, high = _steps(_sixteen(codes, 0 * unit, ALIGNED))
    return low, high, scale, scale, scale, scale


@triton.jit
def decode_iq4_xs(codes, header, halves, unit, ALIGNED: tl.constexpr):
    d = tl.load(halves).to(tl.float32)
    top = tl.load(halves + 1).to(tl.uint16, bitcast=True).to(tl.int32) >> (unit * 2)
    bottom = tl.load(header + 4 + unit // 2).to(tl.int32) >> (unit % 2 * 4)
    scale = d * (((bottom & 15) | ((top & 3) << 4)) - 32).to(tl.float32)
    low, high = _steps(_sixteen(codes, unit * 16, ALIGNED))
    return low, high, scale, scale, scale, scale
