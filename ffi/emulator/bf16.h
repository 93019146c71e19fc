// The instructions of AVX-512 bfloat16 as functions of AVX-512, for tests on processors without it
// (Intel 64 and IA-32 SDM, volume 2). Subnormal numbers become 0 as they are rounded; in products
// they count, which the processor also takes for 0.
#pragma once

#include <immintrin.h>

namespace llmc::emulator {

// Rounded to nearest even, as 16 bits; NaN stays NaN.
inline __m256i RoundedToBf16(__m512 x) {
  const __m512i bits = _mm512_castps_si512(x), upper = _mm512_srli_epi32(bits, 16);
  const __m512i even = _mm512_add_epi32(_mm512_and_si512(upper, _mm512_set1_epi32(1)),
                                        _mm512_set1_epi32(0x7fff));
  __m512i result = _mm512_srli_epi32(_mm512_add_epi32(bits, even), 16);
  const __mmask16 small = _mm512_cmp_ps_mask(_mm512_abs_ps(x), _mm512_set1_ps(0x1p-126f),
                                             _CMP_LT_OQ);
  result = _mm512_mask_and_epi32(result, small, upper, _mm512_set1_epi32(0x8000));
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  result = _mm512_mask_or_epi32(result, nan, upper, _mm512_set1_epi32(0x40));
  return _mm512_cvtepi32_epi16(result);
}

inline __m512i RoundedToBf16(__m512 high, __m512 low) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(RoundedToBf16(low)), RoundedToBf16(high), 1);
}

// sum + the products of both halves of each word, by fused multiply-adds.
inline __m512 AddPairs(__m512 sum, __m512i a, __m512i b) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  auto number = [](__m512i bits) { return _mm512_castsi512_ps(bits); };
  sum = _mm512_fmadd_ps(number(_mm512_and_si512(a, upper)), number(_mm512_and_si512(b, upper)),
                        sum);
  return _mm512_fmadd_ps(number(_mm512_slli_epi32(a, 16)), number(_mm512_slli_epi32(b, 16)), sum);
}

}  // namespace llmc::emulator

#define _mm512_cvtneps_pbh(x) ((__m256bh)llmc::emulator::RoundedToBf16(x))
#define _mm512_cvtne2ps_pbh(high, low) ((__m512bh)llmc::emulator::RoundedToBf16(high, low))
#define _mm512_dpbf16_ps(sum, a, b) llmc::emulator::AddPairs(sum, (__m512i)(a), (__m512i)(b))
