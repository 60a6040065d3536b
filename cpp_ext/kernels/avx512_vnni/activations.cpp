// Quantisation of activations and SiLU on AVX-512.
#include <immintrin.h>

#include "../stream.h"

namespace hk2 {
namespace {

void quantise(const float* x, int64_t blocks, int8_t* codes, float* scales, float* sums,
              float* half_sums) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  for (int64_t b = 0; b < blocks; ++b, x += kActivationBlock, codes += kActivationBlock) {
    const __m512 low = _mm512_loadu_ps(x), high = _mm512_loadu_ps(x + 16);
    // Magnitudes compared as integers, so that a NaN, larger than any number, reaches the scale.
    const __m512i largest =
        _mm512_max_epu32(_mm512_and_si512(_mm512_castps_si512(low), magnitude),
                         _mm512_and_si512(_mm512_castps_si512(high), magnitude));
    const float max = _mm_cvtss_f32(
        _mm_castsi128_ps(_mm_cvtsi32_si128(static_cast<int>(_mm512_reduce_max_epu32(largest)))));
    const bool tiny = max < 1e-30f;  // its inverse would overflow; counts as zero
    const float scale = tiny ? 0 : max / 127;
    const __m512 inverse = _mm512_set1_ps(tiny ? 0 : 127 / max);
    const __m512i a = _mm512_cvtps_epi32(_mm512_mul_ps(low, inverse));
    const __m512i c = _mm512_cvtps_epi32(_mm512_mul_ps(high, inverse));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(codes), _mm512_cvtsepi32_epi8(a));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + 16), _mm512_cvtsepi32_epi8(c));
    const int sum_low = _mm512_reduce_add_epi32(a), sum_high = _mm512_reduce_add_epi32(c);
    scales[b] = scale;
    half_sums[2 * b] = scale * static_cast<float>(sum_low);
    half_sums[2 * b + 1] = scale * static_cast<float>(sum_high);
    sums[b] = scale * static_cast<float>(sum_low + sum_high);
  }
}

// exp(x), relative error below 2e-7: 2^n * p(r) with n = round(x / ln 2) and |r| <= ln 2 / 2. NaN
// passes (the second operand of min and max wins).
HK2_INLINE __m512 exp_ps(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-110), _mm512_min_ps(_mm512_set1_ps(100), x));
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.9875691500e-4f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
  p = _mm512_fmadd_ps(_mm512_mul_ps(p, r), r, _mm512_add_ps(r, _mm512_set1_ps(1)));
  return _mm512_scalef_ps(p, n);  // saturates to 0 and infinity by itself
}

void silu_multiply(float* gate, const float* up, int64_t n) {
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 mask = static_cast<__mmask16>(n - i >= 16 ? 0xffff : (1 << (n - i)) - 1);
    const __m512 g = _mm512_maskz_loadu_ps(mask, gate + i);
    const __m512 sigmoid_inverse =
        _mm512_add_ps(_mm512_set1_ps(1), exp_ps(_mm512_sub_ps(_mm512_setzero_ps(), g)));
    const __m512 silu = _mm512_div_ps(g, sigmoid_inverse);
    _mm512_mask_storeu_ps(gate + i, mask, _mm512_mul_ps(silu, _mm512_maskz_loadu_ps(mask, up + i)));
  }
}

const ActivationKernel kKernel = {quantise, silu_multiply};

}  // namespace
}  // namespace hk2

extern "C" const hk2::ActivationKernel* hk2_avx512_vnni_activations() { return &hk2::kKernel; }
