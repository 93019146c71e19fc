// GELU, approximated with tanh as GPT-2's (llmc_jax/ops/gelu.py), for the epilogues of mlp.
#pragma once

#include "cpu/vec.h"

namespace llmc::LLMC_ISA {

// gelu(x) = x s, s = 1 / (1 + e^(-2u)), u = sqrt(2/pi) (x + 0.044715 x^3): x/2 (1 + tanh u)
constexpr float kGeluScale = 0.7978845608f, kGeluCubic = 0.044715f;

// The x that the functions below are given: at least -9.7, where gelu and gelu' are 0 to 1e-32 and
// e^(-2u) is still a float, e^80.5. NaN stays NaN.
inline Vec GeluDomain(Vec x) { return MaxOf(Broadcast(-9.7f), x); }

template <typename T>
Vec GeluSigmoid(Vec x) {
  constexpr float kUnit = -2 * kGeluScale * Power<T>::kPerNat;
  const Vec exponent = x * (kUnit * kGeluCubic * x * x + kUnit);
  return Reciprocal<T>(1.f + Power<T>::Of(exponent));
}

// gelu' = s + s (1 - s) x 2u', given s
inline Vec GeluSlope(Vec x, Vec s) {
  const Vec du = 6 * kGeluScale * kGeluCubic * x * x + 2 * kGeluScale;  // 2u'
  return (s - s * s) * x * du + s;
}

}  // namespace llmc::LLMC_ISA
