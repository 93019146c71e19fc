// Gradients of weights that are left in their factors (llmc_jax/ops/factors.py):
//   dweight (OC,C) = dout^T inp, of dout (N,OC) and inp (N,C)
// With few rows N the factors are less memory than dweight, whose norm follows from them; and when
// AdamW wants it, it is made in memory that serves one weight after another.
#pragma once

#include "cpu/matmul.h"

namespace llmc::LLMC_ISA {

// The calling thread by itself.
class Alone final : public Threads {
 public:
  int64_t count() const override { return 1; }
  void Run(int64_t n, void (*task)(void*, int64_t), void* context) override {
    for (int64_t i = 0; i < n; ++i) task(context, i);
  }
};

// body(dout, inp), of the type that the factors have.
template <typename Body>
auto OnFactors(const Gradient& g, const Body& body) {
  return g.half ? body(static_cast<const BF16*>(g.data), static_cast<const BF16*>(g.inp))
                : body(static_cast<const float*>(g.data), static_cast<const float*>(g.inp));
}

// The sum of the squares of dout^T inp, on one thread: that of the products of the elements of
// dout dout^T and inp inp^T (Goodfellow 2015, arXiv:1510.01799, adds up the diagonals), which are
// symmetric, so that blocks left of the diagonal count twice and those right of it are not made.
template <typename T>
double SquaresOfProduct(int64_t N, int64_t OC, int64_t C, const T* dout, const T* inp) {
  constexpr int64_t kColumns = 96;  // of a block: of every instruction set whole panels
  Alone alone;
  SharedScratch<float> scratch(N * kColumns);
  float* products = scratch.data();
  double sum = 0;
  for (int64_t n = 0; n < N; n += kColumns) {
    const int64_t rows = N - n, columns = Min(kColumns, rows);
    const auto a = Rows(dout + n * OC, OC), b = Rows(inp + n * C, C);
    Gemm<T>(alone, rows, columns, OC, a, a, [&](const Tile& tile) {
      for (int64_t r = 0; r < tile.rows; ++r)
        ForVectors(tile.columns, [&](int64_t i, auto some) {
          float* at = products + (tile.row + r) * kColumns + tile.column + i;
          StoreUpTo(at, Load(tile.data + r * tile.ld + i), some);
        });
    });
    Gemm<T>(alone, rows, columns, C, b, b, [&](const Tile& tile) {
      Vec sums{};
      for (int64_t r = 0; r < tile.rows; ++r)
        ForVectors(tile.columns, [&](int64_t i, auto some) {
          const float* at = products + (tile.row + r) * kColumns + tile.column + i;
          sums += LoadUpTo(at, some) * LoadUpTo(tile.data + r * tile.ld + i, some);
        });
      sum += (tile.row < columns ? 1 : 2) * static_cast<double>(Sum(sums));
    });
  }
  return sum < 0 ? 0 : sum;  // which rounding could make of nothing
}

inline double SquaresOfProduct(const Gradient& g) {
  return OnFactors(g, [&](const auto* dout, const auto* inp) {
    return SquaresOfProduct(g.N, g.size / g.C, g.C, dout, inp);
  });
}

// dweight (OC,C), in float.
inline void Multiply(Threads& threads, const Gradient& g, float* dweight) {
  const int64_t OC = g.size / g.C;
  OnFactors(g, [&](const auto* dout, const auto* inp) {
    WeightGradient(threads, g.N, g.C, OC, Columns(dout, OC), inp, dweight);
  });
}

}  // namespace llmc::LLMC_ISA
