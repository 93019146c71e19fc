// Vectors of floats for whichever instruction set the including file is compiled for, on the
// vector extension that g++ and clang share, so that a kernel is written once.
//
// Every instruction set's kernels live in a namespace of their own, LLMC_ISA, and use nothing
// inline from outside it: the linker keeps one copy of an inline function, and it could be the
// one compiled for instructions this machine does not have.
#pragma once

#include <cstdint>

#include "cpu/types.h"

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace llmc::LLMC_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t Int __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Word __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Half __attribute__((vector_size(2 * kLanes)));
// the same in memory, at any address
typedef float VecAt __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef uint32_t WordAt __attribute__((vector_size(4 * kLanes), aligned(2), may_alias));
typedef uint16_t HalfAt __attribute__((vector_size(2 * kLanes), aligned(2), may_alias));

template <typename T>
T Min(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
T Max(T a, T b) {
  return a < b ? b : a;
}
constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t RoundUp(int64_t a, int64_t b) { return CeilDiv(a, b) * b; }

inline Vec Broadcast(float x) { return x - Vec{}; }
// a > b ? a : b and a < b ? a : b, so b where one is NaN. (g++ 12 makes three instructions of
// these.)
inline Vec MaxOf(Vec a, Vec b) {
#if defined(__AVX512F__)
  return (Vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Vec)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}
inline Vec MinOf(Vec a, Vec b) {
#if defined(__AVX512F__)
  return (Vec)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Vec)_mm256_min_ps((__m256)a, (__m256)b);
#else
  return a < b ? a : b;
#endif
}

inline float Sum(Vec v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#endif
  float sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += v[i];
  return sum;
}
inline float Largest(Vec v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)v);
#endif
  float max = v[0];
  for (int i = 1; i < kLanes; ++i) max = Max(max, v[i]);
  return max;
}

// bfloat16 as the upper half of a float, rounded to nearest, ties to even; NaN stays NaN
inline Word RoundBits(Vec v) {
  Word bits = (Word)v;
  Word rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return v == v ? rounded : (bits >> 16) | 0x40;
}

inline Vec Load(const float* p) { return *reinterpret_cast<const VecAt*>(p); }
inline Vec Widened(Half half) {
#if defined(__AVX512F__)
  const Word bits = (Word)_mm512_cvtepu16_epi32((__m256i)half);  // g++ 12 makes four of it
#else
  const Word bits = __builtin_convertvector(half, Word);
#endif
  return (Vec)(bits << 16);
}
inline Vec Load(const BF16* p) { return Widened(*reinterpret_cast<const HalfAt*>(p)); }
inline void Store(float* p, Vec v) { *reinterpret_cast<VecAt*>(p) = v; }
inline void Store(BF16* p, Vec v) {
#if defined(__AVX512BF16__)
  *reinterpret_cast<HalfAt*>(p) = (Half)_mm512_cvtneps_pbh((__m512)v);
#else
  *reinterpret_cast<HalfAt*>(p) = __builtin_convertvector(RoundBits(v), Half);
#endif
}

inline float ToFloat(float x) { return x; }
inline float ToFloat(BF16 x) {
  uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float result;
  __builtin_memcpy(&result, &bits, sizeof result);
  return result;
}
inline void FromFloat(float x, float* out) { *out = x; }
inline void FromFloat(float x, BF16* out) { out->bits = RoundBits(Broadcast(x))[0]; }

// The first n < kLanes elements; the others are 0.
template <typename T>
Vec LoadSome(const T* p, int64_t n) {
  Vec v{};
  for (int64_t i = 0; i < n; ++i) v[i] = ToFloat(p[i]);
  return v;
}
template <typename T>
void StoreSome(T* p, Vec v, int64_t n) {
  for (int64_t i = 0; i < n; ++i) FromFloat(v[i], &p[i]);
}

// The value that remains when v is stored as T and loaded again.
template <typename T>
Vec Rounded(Vec v);
template <>
inline Vec Rounded<float>(Vec v) {
  return v;
}
template <>
inline Vec Rounded<BF16>(Vec v) {
#if defined(__AVX512BF16__)
  return Widened((Half)_mm512_cvtneps_pbh((__m512)v));
#else
  return (Vec)(RoundBits(v) << 16);
#endif
}

// Stores past the caches where p is aligned to a vector: for large results, which would
// otherwise first be read from memory, then push everything else out of the cache.
inline void Stream(float* p, Vec v) {
#if defined(__AVX2__)
  if (reinterpret_cast<uintptr_t>(p) % sizeof(Vec) == 0) {
#if defined(__AVX512F__)
    _mm512_stream_ps(p, (__m512)v);
#else
    _mm256_stream_ps(p, (__m256)v);
#endif
    return;
  }
#endif
  Store(p, v);
}
inline void Stream(BF16* p, Vec v) {
#if defined(__AVX512F__)
  if (reinterpret_cast<uintptr_t>(p) % sizeof(Half) == 0) {
    Half half;
    Store(reinterpret_cast<BF16*>(&half), v);
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), (__m256i)half);
    return;
  }
#endif
  Store(p, v);
}
// Neighbours: of bfloat16 a whole line of the cache, which is written at once.
template <typename T>
void StreamPair(T* p, Vec first, Vec second) {
#if defined(__AVX512BF16__)
  if constexpr (sizeof(T) == 2) {
    if (__builtin_expect(reinterpret_cast<uintptr_t>(p) % 64 == 0, 1)) {
      const auto line = _mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
      return _mm512_stream_si512(reinterpret_cast<__m512i*>(p), (__m512i)line);
    }
  }
#endif
  Stream(p, first);
  Stream(p + kLanes, second);
}
// Makes what was streamed visible to other threads; every task that streams ends with it.
inline void StreamFence() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

// The first n <= kLanes elements.
template <typename T>
Vec LoadUpTo(const T* p, int64_t n) {
  return n == kLanes ? Load(p) : LoadSome(p, n);
}
template <typename T>
void StoreUpTo(T* p, Vec v, int64_t n) {
  if (n == kLanes)
    Store(p, v);
  else
    StoreSome(p, v, n);
}
template <typename T>
void StreamUpTo(T* p, Vec v, int64_t n) {
  if (n == kLanes)
    Stream(p, v);
  else
    StoreSome(p, v, n);
}

// out[i] = sum over the blocks of partial[block * stride + i], i < C; stride is in whole vectors.
inline void SumOfBlocks(const float* partial, int64_t blocks, int64_t stride, int64_t C,
                        float* out) {
  for (int64_t i = 0; i < C; i += kLanes) {
    Vec sum{};
    for (int64_t block = 0; block < blocks; ++block) sum += Load(partial + block * stride + i);
    StoreUpTo(out + i, sum, Min<int64_t>(kLanes, C - i));
  }
}

inline Vec Sqrt(Vec v) {
#if defined(__AVX512F__)
  return (Vec)_mm512_sqrt_ps((__m512)v);
#elif defined(__AVX2__)
  return (Vec)_mm256_sqrt_ps((__m256)v);
#else
  for (int i = 0; i < kLanes; ++i) v[i] = __builtin_sqrtf(v[i]);
  return v;
#endif
}

// How many elements of a vector exist, where it is all of them: known when compiled.
struct Whole {
  constexpr operator int64_t() const { return kLanes; }
};

// Calls body(i, n) for the vectors of a row of C, of which n elements exist.
template <typename Body>
[[gnu::always_inline]] inline void ForVectors(int64_t C, const Body& body) {
  int64_t i = 0;
  for (; i + kLanes <= C; i += kLanes) body(i, Whole{});
  if (i < C) body(i, C - i);
}

// e^x to about 2 ulp, 0 below -87 (where a float would be subnormal), inf where it overflows.
// x = n ln 2 + r, |r| <= ln 2 / 2; e^r by its Taylor polynomial of degree 6, 2^n by the exponent
// bits. ln 2 is split in two so that n ln 2 is exact (Cody & Waite 1980).
inline Vec Exp(Vec x) {
#if defined(__AVX512F__)
  // of a NaN and a number, the instruction gives the second
  const Vec clamped = (Vec)_mm512_max_ps(_mm512_set1_ps(-88.f),
                                         _mm512_min_ps(_mm512_set1_ps(89.f), (__m512)x));
  const Vec n = (Vec)_mm512_roundscale_ps((__m512)(clamped * 1.44269504f), 0);
#else
  constexpr float kRound = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer
  const Vec clamped = MinOf(MaxOf(x, Broadcast(-87.f)), Broadcast(88.f));
  const Vec n = (clamped * 1.44269504f + kRound) - kRound;
#endif
  Vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // of x, so that NaN stays NaN
  Vec p = r * (1.f / 720) + 1.f / 120;
  p = p * r + 1.f / 24;
  p = p * r + 1.f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.f;
  p = p * r + 1.f;
#if defined(__AVX512F__)
  const auto normal = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-87.f), _CMP_NLT_UQ);
  return (Vec)_mm512_maskz_scalef_ps(normal, (__m512)p, (__m512)n);
#else
  Int exponent = (__builtin_convertvector(n, Int) + 127) << 23;
  Vec result = p * (Vec)exponent;
  return x < -87.f ? Vec{} : result;
#endif
}

// A power, as exactly as a result that is rounded to T asks for: e^x for float; 2^x for bfloat16,
// to 7.5e-5, a 25th of its rounding (a cubic in x - floor(x), the best by relative error), for
// x <= 127. Natural exponents times kPerNat make e^x of both.
template <typename T>
struct Power;
template <>
struct Power<float> {
  static constexpr float kPerNat = 1;
  static Vec Of(Vec x) { return Exp(x); }
};
template <>
struct Power<BF16> {
  static constexpr float kPerNat = 1.44269504f;
  static Vec Of(Vec x) {
#if defined(__AVX512DQ__)
    Vec r = (Vec)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF);
#else
    constexpr float kRound = 12582912.f + 127;  // the low bits of n are those of an exponent
    x = MaxOf(Broadcast(-126.5f), x);           // whose power is 0; NaN stays NaN
    Vec n = (x - 0.5f) + kRound, r = x - (n - kRound);
#endif
    Vec p = r * 7.80245215e-2f + 0.226067156f;
    p = p * r + 0.695833564f;
    p = p * r + 0.999925196f;
#if defined(__AVX512DQ__)
    return (Vec)_mm512_scalef_ps((__m512)p, (__m512)x);
#else
    return p * (Vec)((Word)n << 23);
#endif
  }
};

// 1 / x for 1 <= x, as exactly: to 1 ulp for float, 6.1e-5 for bfloat16.
template <typename T>
Vec Reciprocal(Vec x) {
#if defined(__AVX512F__)
  const Vec r = (Vec)_mm512_rcp14_ps((__m512)x);
  if constexpr (sizeof(T) < sizeof(float)) return r;
  return r * (2.f - x * r);  // Newton's step doubles the digits
#else
  return 1.f / x;
#endif
}

// The transpose of kLanes x kLanes words.
inline void Transpose(Word* rows) {
#if defined(__AVX512F__)
  __m512i t[16], u[16];
  __m512i* r = reinterpret_cast<__m512i*>(rows);  // "auto" would lose that it may alias
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    u[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    u[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    u[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    u[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {  // each u[4g + i] has column 4q + i of rows 4g .. in quarter q
    __m512i a = _mm512_shuffle_i32x4(u[i], u[4 + i], 0x88);
    __m512i b = _mm512_shuffle_i32x4(u[8 + i], u[12 + i], 0x88);
    __m512i c = _mm512_shuffle_i32x4(u[i], u[4 + i], 0xdd);
    __m512i d = _mm512_shuffle_i32x4(u[8 + i], u[12 + i], 0xdd);
    r[i] = _mm512_shuffle_i32x4(a, b, 0x88);
    r[4 + i] = _mm512_shuffle_i32x4(c, d, 0x88);
    r[8 + i] = _mm512_shuffle_i32x4(a, b, 0xdd);
    r[12 + i] = _mm512_shuffle_i32x4(c, d, 0xdd);
  }
#else
  for (int i = 0; i < kLanes; ++i)
    for (int j = 0; j < i; ++j) {
      uint32_t word = rows[i][j];
      rows[i][j] = rows[j][i];
      rows[j][i] = word;
    }
#endif
}

// The sum of each of kLanes vectors, as the lanes of one; v is written over.
inline Vec SumOfEach(Vec* v) {
#if defined(__AVX512F__)
  // halves of two vectors are added at a time: a tree of 15 additions
  auto add = [](Vec& a, __m512 b, __m512 c) { a = (Vec)b + (Vec)c; };
  for (int i = 0; i < 8; ++i) {
    const __m512 a = (__m512)v[i], b = (__m512)v[i + 8];
    add(v[i], _mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
  }
  for (int i = 0; i < 4; ++i) {
    const __m512 a = (__m512)v[i], b = (__m512)v[i + 4];
    add(v[i], _mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  }
  for (int i = 0; i < 4; i += 2) {
    const __m512 a = (__m512)v[i], b = (__m512)v[i + 1];
    add(v[i], _mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  }
  const __m512 a = (__m512)v[0], b = (__m512)v[2];
  add(v[0], _mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
  return (Vec)_mm512_shuffle_f32x4((__m512)v[0], (__m512)v[0], 0xd8);
#else
  Word words[kLanes];
  for (int i = 0; i < kLanes; ++i) words[i] = (Word)v[i];
  Transpose(words);
  Vec sum = (Vec)words[0];
  for (int i = 1; i < kLanes; ++i) sum += (Vec)words[i];
  return sum;
#endif
}

}  // namespace llmc::LLMC_ISA
