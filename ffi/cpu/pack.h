// Panels: the order in which the inner loops of micro.h read their operands.
//
// An operand is a matrix of `rows` rows along the product's outer dimension by K along its inner
// one, in memory in either order. It is cut into panels of R rows, and a panel is a sequence of
// words of 32 bits: a float, or a pair of bfloat16 that are neighbours along K. Words along K are
// called steps. Steps that the matrix does not have are 0; rows it does not have hold anything, and
// make rows or columns of the product that nobody reads.
#pragma once

#include "cpu/vec.h"

namespace llmc::LLMC_ISA {

// Where element (row, k) of an operand is: data[row * row_stride + k * k_stride], one stride is 1.
template <typename T>
struct Operand {
  const T* data;
  int64_t row_stride, k_stride;  // in elements

  Operand From(int64_t row, int64_t k) const {
    return {data + row * row_stride + k * k_stride, row_stride, k_stride};
  }
};

template <typename T>
Operand<T> Rows(const T* data, int64_t columns) {  // (row, k) in row-major order
  return {data, columns, 1};
}
template <typename T>
Operand<T> Columns(const T* data, int64_t columns) {  // its transpose
  return {data, 1, columns};
}

// In what form a panel holds its elements.
struct Floats {
  static constexpr int kPer = 1;  // elements in a word
};
struct Pairs {
  static constexpr int kPer = 2;
};

// kLanes consecutive elements of a row, or of two rows that are neighbours along K, as words.
inline Word WordsAlongK(Floats, const float* p) { return (Word)Load(p); }
inline Word WordsAlongK(Floats, const BF16* p) { return (Word)Load(p); }
inline Word WordsAlongK(Pairs, const BF16* p) { return *reinterpret_cast<const WordAt*>(p); }
inline Word WordsAlongK(Pairs, const float* p) {
#if defined(__AVX512BF16__)
  return (Word)_mm512_cvtne2ps_pbh((__m512)Load(p + kLanes), (__m512)Load(p));
#endif
  BF16 rounded[2 * kLanes];
  Store(rounded, Load(p));
  Store(rounded + kLanes, Load(p + kLanes));
  return *reinterpret_cast<const WordAt*>(rounded);
}
template <typename T>
Word WordsAlongRows(Floats, const T* p, int64_t) {
  return (Word)Load(p);
}
#if defined(__AVX512BF16__)
// Words of the elements of both halves in turn: element i of the first below that of the second.
inline Word InTurn(__m512i halves) {
  constexpr Word kLane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return (Word)_mm512_permutexvar_epi16((__m512i)(kLane * 0x10001 + (16 << 16)), halves);
}
inline Word WordsAlongRows(Pairs, const BF16* p, int64_t k_stride) {
  auto* second = reinterpret_cast<const __m256i*>(p + k_stride);
  const __m512i first = _mm512_castsi256_si512(
      _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return InTurn(_mm512_inserti64x4(first, _mm256_loadu_si256(second), 1));
}
inline Word WordsAlongRows(Pairs, const float* p, int64_t k_stride) {
  return InTurn((__m512i)_mm512_cvtne2ps_pbh((__m512)Load(p + k_stride), (__m512)Load(p)));
}
#else
inline Word HalfWords(const BF16* p) {
  return __builtin_convertvector(*reinterpret_cast<const HalfAt*>(p), Word);
}
inline Word HalfWords(const float* p) { return RoundBits(Load(p)); }
template <typename T>
Word WordsAlongRows(Pairs, const T* p, int64_t k_stride) {
  return HalfWords(p) | (HalfWords(p + k_stride) << 16);
}
#endif

// A block of kLanes rows by kLanes steps that lies in m as a whole, or with fewer rows if these are
// stored along K: see LoadBlock.
template <bool along_k, typename F, typename T>
void LoadWholeBlock(F form, const Operand<T>& m, int64_t rows, Word (&out)[kLanes]) {
  bool stored_along_k = m.k_stride == 1;
  if (!stored_along_k) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i)
      out[i] = WordsAlongRows(form, m.data + i * F::kPer * m.k_stride, m.k_stride);
  } else if (rows >= kLanes) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) out[i] = WordsAlongK(form, m.data + i * m.row_stride);
  } else {
    for (int i = 0; i < kLanes; ++i)
      out[i] = i < rows ? WordsAlongK(form, m.data + i * m.row_stride) : Word{};
  }
  if (stored_along_k != along_k) Transpose(out);
}

// A copy of the block of kLanes rows by kSpan elements at an end of m, with zeros behind the end.
template <int64_t kSpan, typename T>
Operand<T> CopyOfBlock(const Operand<T>& m, int64_t rows, int64_t K, T (&copy)[kLanes * kSpan]) {
  const int64_t some = Min<int64_t>(rows, kLanes), span = Max<int64_t>(0, Min(K, kSpan));
  const bool along_k = m.k_stride == 1;
  const int64_t lines = along_k ? some : span, length = along_k ? span : some;
  const int64_t stride = along_k ? m.row_stride : m.k_stride, line = along_k ? kSpan : kLanes;
  __builtin_memset(copy, 0, sizeof copy);
  for (int64_t i = 0; i < lines; ++i)
    __builtin_memcpy(copy + i * line, m.data + i * stride, length * sizeof(T));
  return along_k ? Rows<T>(copy, kSpan) : Columns<T>(copy, kLanes);
}

// The block at an end of m.
template <bool along_k, typename F, typename T>
[[gnu::noinline]] void LoadEndBlock(F form, const Operand<T>& m, int64_t rows, int64_t K,
                                    Word (&out)[kLanes]) {
  constexpr int64_t kSpan = kLanes * F::kPer;
  T copy[kLanes * kSpan];
  LoadWholeBlock<along_k>(form, CopyOfBlock<kSpan>(m, rows, K, copy), kLanes, out);
}

// The block of kLanes rows by kLanes steps at the start of m: out[step], its lanes the rows, or
// with `along_k` out[row], its lanes the steps. All of it is read before any is written: a load
// that follows a store to the same place of another page waits for it.
template <bool along_k, typename F, typename T>
void LoadBlock(F form, const Operand<T>& m, int64_t rows, int64_t K, Word (&out)[kLanes]) {
  if (K < kLanes * F::kPer || (rows < kLanes && m.k_stride != 1))
    LoadEndBlock<along_k>(form, m, rows, K, out);
  else
    LoadWholeBlock<along_k>(form, m, rows, out);
}

// Calls each(row, step) for the blocks of an operand, in the order in which they lie in memory: of
// one stored along its rows all rows of a step, then those of the next.
template <typename T, typename Each>
void ForBlocks(const Operand<T>& m, int64_t rows, int64_t steps, const Each& each) {
  const bool rows_first = m.k_stride != 1;
  const int64_t outer = rows_first ? steps : rows, inner = rows_first ? rows : steps;
  for (int64_t i = 0; i < outer; i += kLanes)
    for (int64_t j = 0; j < inner; j += kLanes) each(rows_first ? j : i, rows_first ? i : j);
}

// Packs the rows into panels of R, each ordered [step][row]. `out` has room for the rows rounded
// up to R and to kLanes.
template <int R, typename F, typename T>
void PackSteps(F form, const Operand<T>& m, int64_t rows, int64_t K, int64_t steps,
               uint32_t* out) {
  constexpr int kWide = R < kLanes ? R : kLanes;
  static_assert(kLanes % kWide == 0 && R % kWide == 0);
  ForBlocks(m, rows, steps, [&](int64_t r, int64_t s) {
    Word block[kLanes];
    LoadBlock<false>(form, m.From(r, s * F::kPer), rows - r, K - s * F::kPer, block);
    int64_t some = Min<int64_t>(kLanes, steps - s);
    for (int part = 0; part < kLanes; part += kWide) {
      uint32_t* panel = out + (r + part) / R * (R * steps) + (r + part) % R;
      for (int64_t i = 0; i < some; ++i)
        __builtin_memcpy(panel + (s + i) * R, reinterpret_cast<uint32_t*>(&block[i]) + part,
                         kWide * sizeof(uint32_t));
    }
  });
}

// Packs the rows into panels of R, each ordered [group of kLanes steps][row][step]: rows of a
// panel as the tile registers of AMX read them. `steps` is a multiple of kLanes.
template <int R, typename F, typename T>
void PackRows(F form, const Operand<T>& m, int64_t rows, int64_t K, int64_t steps, uint32_t* out) {
  static_assert(R % kLanes == 0);
  ForBlocks(m, rows, steps, [&](int64_t r, int64_t s) {
    Word block[kLanes];
    LoadBlock<true>(form, m.From(r, s * F::kPer), rows - r, K - s * F::kPer, block);
    auto* panel = reinterpret_cast<Word*>(out + r / R * (R * steps) + (s * R + r % R * kLanes));
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) panel[i] = block[i];
  });
}

}  // namespace llmc::LLMC_ISA
