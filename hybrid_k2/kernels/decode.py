"""How a block's bytes become numbers inside a Triton kernel: one function a ggml format.

All formats are seen in the same terms. A *unit* is 32 weights: two *runs* of 16 consecutive ones,
low and high, which share 16 bytes of codes wherever codes are nibbles. A run has one scale and one
offset: weight = scale * value - offset. Of the bytes of a block, the codes are one contiguous part
and the header (scales) the other, so that the two may also lie apart. The torch functions of
hybrid_k2.quant are the specification. Knows no matrices and no launches.
"""

from __future__ import annotations

import triton
import triton.language as tl

# IQ4_NL's sixteen steps as signed bytes, the first eight and the last (gguf: IQ4_NL.kvalues).
_STEPS_LOW = tl.constexpr(0xF6EADDCFBFAD9881)
_STEPS_HIGH = tl.constexpr(0x7159453526190D01)


@triton.jit
def low_weight(column, INTERLEAVED: tl.constexpr):
    """Column i of a row's units (16 each) is weight low_weight(i) of the row in the low run, and
    the weight 16 * INTERLEAVED after it in the high run.
    """
    return column // (16 * INTERLEAVED) * (32 * INTERLEAVED) + column % (16 * INTERLEAVED)


# Each function below decodes a tile of R rows, U units and C = 16 * U columns. It takes pointers
# [R, C] to the codes of a column's block and the column's place in the block, at [1, C]; pointers
# [R, U] to the header of a unit's block, as bytes and as float16, and the unit's place in the
# block, [1, U]. It returns the values of the low and the high run, [R, C], then their scales and
# their offsets, float32 [R, U].


@triton.jit
def decode_q8_0(codes, at, header, halves, unit):
    scale = tl.load(halves).to(tl.float32)
    low = tl.load(codes + at).to(tl.int8, bitcast=True)
    high = tl.load(codes + at + 16).to(tl.int8, bitcast=True)
    return low, high, scale, scale, scale, scale


@triton.jit
def decode_q4_0(codes, at, header, halves, unit):
    scale = tl.load(halves).to(tl.float32)
    code = tl.load(codes + at)
    return code & 15, code >> 4, scale, scale, 8 * scale, 8 * scale


@triton.jit
def decode_q4_1(codes, at, header, halves, unit):
    scale = tl.load(halves).to(tl.float32)
    offset = -tl.load(halves + 1).to(tl.float32)
    code = tl.load(codes + at)
    return code & 15, code >> 4, scale, scale, offset, offset


@triton.jit
def _fifth_bits(code, at, codes_header):
    """Nibbles of bytes [R, C] and, from a word of bits at pointers [R, U], 16 where the bit is set.

    Bits 0-15 belong to the low run, 16-31 to the high one.
    """
    R: tl.constexpr = codes_header.shape[0]
    U: tl.constexpr = codes_header.shape[1]
    low_bits = tl.load(codes_header).to(tl.uint16, bitcast=True)
    high_bits = tl.load(codes_header + 1).to(tl.uint16, bitcast=True)
    bits = low_bits.to(tl.uint32) | (high_bits.to(tl.uint32) << 16)  # [R, U]
    bits = over_columns(bits, R, U) >> at.to(tl.uint32)
    low = (code & 15) | ((bits & 1) << 4).to(tl.uint8)
    high = (code >> 4) | ((bits >> 12) & 16).to(tl.uint8)
    return low, high


@triton.jit
def over_columns(x, ROWS: tl.constexpr, UNITS: tl.constexpr):
    """[R, U] -> [R, 16 U]: a unit's number for each of its columns."""
    return tl.broadcast_to(x[:, :, None], [ROWS, UNITS, 16]).reshape(ROWS, UNITS * 16)


@triton.jit
def decode_q5_0(codes, at, header, halves, unit):
    scale = tl.load(halves).to(tl.float32)
    low, high = _fifth_bits(tl.load(codes + at), at, halves + 1)
    return low, high, scale, scale, 16 * scale, 16 * scale


@triton.jit
def decode_q5_1(codes, at, header, halves, unit):
    scale = tl.load(halves).to(tl.float32)
    offset = -tl.load(halves + 1).to(tl.float32)
    low, high = _fifth_bits(tl.load(codes + at), at, halves + 2)
    return low, high, scale, scale, offset, offset


@triton.jit
def _scales_and_mins(header, halves, unit):
    """Of a unit of Q4_K or Q5_K: the scales of its two groups, then their minima, [R, U] each.

    The layout is that of hybrid_k2.quant.blocks.scales_and_mins.
    """
    d = tl.load(halves).to(tl.float32)
    dmin = tl.load(halves + 1).to(tl.float32)
    place = header + 4 + unit % 4 // 2 * 2  # of groups 0, 1 or 4, 5; else of 2, 3 or 6, 7
    first, first_next = tl.load(place).to(tl.int32), tl.load(place + 1).to(tl.int32)
    second, second_next = tl.load(place + 4).to(tl.int32), tl.load(place + 5).to(tl.int32)
    third, third_next = tl.load(place + 8).to(tl.int32), tl.load(place + 9).to(tl.int32)
    low_scale, low_min = _six_bits(first, second, third, unit < 4)
    high_scale, high_min = _six_bits(first_next, second_next, third_next, unit < 4)
    return d * low_scale, d * high_scale, dmin * low_min, dmin * high_min


@triton.jit
def _six_bits(first, second, third, is_plain):
    scale = tl.where(is_plain, first & 63, (third & 15) | ((first >> 6) << 4))
    minimum = tl.where(is_plain, second & 63, (third >> 4) | ((second >> 6) << 4))
    return scale.to(tl.float32), minimum.to(tl.float32)


@triton.jit
def decode_q4_k(codes, at, header, halves, unit):
    low_scale, high_scale, low_min, high_min = _scales_and_mins(header, halves, unit)
    code = tl.load(codes + at)
    return code & 15, code >> 4, low_scale, high_scale, low_min, high_min


@triton.jit
def decode_q5_k(codes, at, header, halves, unit):
    low_scale, high_scale, low_min, high_min = _scales_and_mins(header, halves, unit)
    code = tl.load(codes + at + 32)
    fifth = tl.load(codes + at % 32) >> (at // 32 * 2).to(tl.uint8)  # the low group's bit, lowest
    low = (code & 15) | ((fifth & 1) << 4)
    high = (code >> 4) | ((fifth & 2) << 3)
    return low, high, low_scale, high_scale, low_min, high_min


@triton.jit
def decode_q6_k(codes, at, header, halves, unit):
    d = tl.load(halves + 8).to(tl.float32)
    scales = header + unit // 4 * 8 + unit % 4
    low_scale = d * tl.load(scales).to(tl.int8, bitcast=True).to(tl.float32)
    high_scale = d * tl.load(scales + 4).to(tl.int8, bitcast=True).to(tl.float32)
    code = tl.load(codes + at)
    top = tl.load(codes + 128 + at // 64 * 32 + at % 32) >> (at // 32 % 2 * 2).to(tl.uint8)
    low = (code & 15) | ((top & 3) << 4)
    high = (code >> 4) | (top & 0x30)
    return low, high, low_scale, high_scale, 32 * low_scale, 32 * high_scale


@triton.jit
def _step(code):
    """uint8 codes below 16 -> the step of IQ4_NL, int8: a byte of two 64-bit words."""
    word = tl.where(code < 8, _STEPS_LOW, _STEPS_HIGH).to(tl.uint64)
    step = word >> ((code & 7) * 8).to(tl.uint64)
    return (step & 255).to(tl.uint8).to(tl.int8, bitcast=True)


@triton.jit
def decode_iq4_nl(codes, at, header, halves, unit):
    scale = tl.load(halves).to(tl.float32)
    code = tl.load(codes + at)
    return _step(code & 15), _step(code >> 4), scale, scale, scale, scale


@triton.jit
def decode_iq4_xs(codes, at, header, halves, unit):
    d = tl.load(halves).to(tl.float32)
    top = tl.load(halves + 1).to(tl.uint16, bitcast=True).to(tl.int32) >> (unit * 2)
    bottom = tl.load(header + 4 + unit // 2).to(tl.int32) >> (unit % 2 * 4)
    scale = d * (((bottom & 15) | ((top & 3) << 4)) - 32).to(tl.float32)
    code = tl.load(codes + at)
    return _step(code & 15), _step(code >> 4), scale, scale, scale, scale
