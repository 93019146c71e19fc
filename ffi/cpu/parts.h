// Floats in parts: the panels of PartPanels in tiles.h.
#pragma once

#include "cpu/pack.h"

namespace llmc::LLMC_ISA {

// A float as the sum of kParts bfloat16, each the nearest to what the ones before it leave. They
// have 8 significant bits each and a float 24, so the sum is exact, but for parts too small for a
// normal number; and infinity becomes NaN.
constexpr int kParts = 3;

inline Vec FloatsOf(__m256i halves) {
  return (Vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16);
}
// The parts of two vectors, those of the first in the lower half.
inline void Split(Vec first, Vec second, Word (&parts)[kParts]) {
  for (Word& part : parts) {
    const auto both = (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
    first -= FloatsOf(_mm512_castsi512_si256(both));
    second -= FloatsOf(_mm512_extracti64x4_epi64(both, 1));
    part = (Word)both;
  }
}

// LoadBlock for the parts of floats, as pairs.
template <bool along_k>
void LoadBlockInParts(const Operand<float>& m, int64_t rows, int64_t K,
                      Word (&out)[kParts][kLanes]) {
  constexpr int64_t kSpan = 2 * kLanes;
  const bool stored_along_k = m.k_stride == 1, whole = rows >= kLanes && K >= kSpan;
  float copy[kLanes * kSpan];
  const Operand<float> block = whole ? m : CopyOfBlock<kSpan>(m, rows, K, copy);
  const int64_t line = stored_along_k ? block.row_stride : 2 * block.k_stride;
  const int64_t next = stored_along_k ? kLanes : block.k_stride;
#pragma GCC unroll 4
  for (int64_t i = 0; i < kLanes; ++i) {
    const float* first = block.data + i * line;
    Word parts[kParts];
    Split(Load(first), Load(first + next), parts);
    for (int part = 0; part < kParts; ++part)
      out[part][i] = stored_along_k ? parts[part] : InTurn((__m512i)parts[part]);
  }
  if (stored_along_k == along_k) return;
  for (Word(&words)[kLanes] : out) Transpose(words);
}

// Packs the rows of floats into panels of R, each ordered [group of kLanes steps][part] and then as
// PackSteps does, or `as_rows` as PackRows. `steps` is a multiple of kParts kLanes.
template <int R, bool as_rows>
void PackParts(const Operand<float>& m, int64_t rows, int64_t K, int64_t steps, uint32_t* out) {
  ForBlocks(m, rows, steps / kParts, [&](int64_t r, int64_t s) {
    Word block[kParts][kLanes];
    LoadBlockInParts<as_rows>(m.From(r, 2 * s), rows - r, K - 2 * s, block);
    uint32_t* group = out + r / R * (R * steps) + s * kParts * R;
    for (int i = 0; i < kParts * kLanes; ++i) {
      uint32_t* words = as_rows ? group + i / kLanes * (R * kLanes) + (r % R + i % kLanes) * kLanes
                                : group + i * R + r % R;
      *reinterpret_cast<WordAt*>(words) = block[i / kLanes][i % kLanes];
    }
  });
}
}  // namespace llmc::LLMC_ISA
