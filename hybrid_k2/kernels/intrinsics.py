"""The two instructions that Triton has no name for, and what they compute, for its interpreter.

`dot4` multiplies four signed bytes with four 16-bit numbers and `permute` picks bytes by number:
each replaces a dozen ordinary instructions, and products with 4-bit weights are bound by
instructions on a GPU that reads 4 TB/s. Knows no formats.
"""

from __future__ import annotations

import triton
import triton.language as tl

_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def dot4(weights, x_low, x_high, total):
    """total + the products of four signed bytes with two 16-bit numbers in each of x_low, x_high.

    All int32, lowest first; the sum must fit 32 bits.
    """
    if _INTERPRETED:
        total += ((weights << 24) >> 24) * ((x_low << 16) >> 16)
        total += ((weights << 16) >> 24) * (x_low >> 16)
        total += ((weights << 8) >> 24) * ((x_high << 16) >> 16)
        total += (weights >> 24) * (x_high >> 16)
    else:
        total = tl.inline_asm_elementwise(
            "dp2a.lo.s32.s32 $0, $2, $1, $4; dp2a.hi.s32.s32 $0, $3, $1, $0;",
            "=&r,r,r,r,r",
            [weights, x_low, x_high, total],
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )
    return total


@triton.jit
def permute(low, high, selector):
    """Four of the eight bytes of low and high, int32: byte i is number `selector >> 4 i & 7`."""
    if _INTERPRETED:
        source = low.to(tl.uint32, bitcast=True).to(tl.uint64)
        source |= high.to(tl.uint32, bitcast=True).to(tl.uint64) << 32
        picked = tl.zeros_like(selector)
        for i in tl.static_range(4):
            byte = source >> ((selector >> (4 * i)) & 7).to(tl.uint64) * 8
            picked |= (byte & 255).to(tl.int32) << (8 * i)
    else:
        # The fourth bit of a number would ask for the byte's sign.
        picked = tl.inline_asm_elementwise(
            "prmt.b32 $0, $1, $2, $3;",
            "=r,r,r,r",
            [low, high, selector & 0x7777],
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )
    return picked
