// Quantisation of activations and SiLU on AVX2.
#include <immintrin.h>

#include "../stream.h"

namespace hk2 {
namespace {

HK2_INLINE int sum_lanes(__m256i v) {
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}

void quantise(const float* x, int64_t blocks, int8_t* codes, float* scales, float* sums,
              float* half_sums) {
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  for (int64_t b = 0; b < blocks; ++b, x += kActivationBlock, codes += kActivationBlock) {
    // Magnitudes compared as integers, so that a NaN, larger than any number, reaches the scale.
    __m256i largest = _mm256_setzero_si256();
    for (int i = 0; i < 4; ++i)
      largest = _mm256_max_epi32(
          largest, _mm256_and_si256(_mm256_castps_si256(_mm256_loadu_ps(x + 8 * i)), magnitude));
    __m128i m =
        _mm_max_epi32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1));
    const float max = _mm_cvtss_f32(_mm_castsi128_ps(m));
    const bool tiny = max < 1e-30f;  // its inverse would overflow; counts as zero
    const float scale = tiny ? 0 : max / 127;
    const __m256 inverse = _mm256_set1_ps(tiny ? 0 : 127 / max);
    __m256i c[4];
    for (int i = 0; i < 4; ++i)
      c[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), inverse));
    const __m256i packed =
        _mm256_packs_epi16(_mm256_packs_epi32(c[0], c[1]), _mm256_packs_epi32(c[2], c[3]));
    const __m256i order =
        _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // undo the packs' interleaving of lanes
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes),
                        _mm256_permutevar8x32_epi32(packed, order));
    const int low = sum_lanes(_mm256_add_epi32(c[0], c[1])),
              high = sum_lanes(_mm256_add_epi32(c[2], c[3]));
    scales[b] = scale;
    half_sums[2 * b] = scale * static_cast<float>(low);
    half_sums[2 * b + 1] = scale * static_cast<float>(high);
    sums[b] = scale * static_cast<float>(low + high);
  }
}

// exp(x), relative error below 2e-7: 2^n * p(r) with n = round(x / ln 2) and |r| <= ln 2 / 2. NaN
// passes (the second operand of min and max wins). Clamped so that 2^n stays a normal float.
HK2_INLINE __m256 exp_ps(__m256 x) {
  x = _mm256_max_ps(_mm256_set1_ps(-87), _mm256_min_ps(_mm256_set1_ps(88), x));
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)), 0);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
  __m256 p = _mm256_set1_ps(1.9875691500e-4f);
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.3981999507e-3f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(8.3334519073e-3f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(4.1665795894e-2f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.6666665459e-1f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(5.0000001201e-1f));
  p = _mm256_fmadd_ps(_mm256_mul_ps(p, r), r, _mm256_add_ps(r, _mm256_set1_ps(1)));
  const __m256i exponent =
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(p, _mm256_castsi256_ps(exponent));
}

HK2_INLINE __m256 silu_multiply_8(__m256 gate, __m256 up) {
  const __m256 e = exp_ps(_mm256_sub_ps(_mm256_setzero_ps(), gate));
  return _mm256_mul_ps(_mm256_div_ps(gate, _mm256_add_ps(_mm256_set1_ps(1), e)), up);
}

void silu_multiply(float* gate, const float* up, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    _mm256_storeu_ps(gate + i, silu_multiply_8(_mm256_loadu_ps(gate + i), _mm256_loadu_ps(up + i)));
  if (i == n) return;
  const size_t rest = static_cast<size_t>(n - i) * sizeof(float);
  float g[8] = {}, u[8] = {};
  memcpy(g, gate + i, rest);
  memcpy(u, up + i, rest);
  _mm256_storeu_ps(g, silu_multiply_8(_mm256_loadu_ps(g), _mm256_loadu_ps(u)));
  memcpy(gate + i, g, rest);
}

const ActivationKernel kKernel = {quantise, silu_multiply};

}  // namespace
}  // namespace hk2

extern "C" const hk2::ActivationKernel* hk2_avx2_activations() { return &hk2::kKernel; }
