// matmul (llmc_jax/ops/matmul.py), the linear layer:
//   out = inp weight^T + bias
//   dinp = dout weight, dweight = dout^T inp, dbias = sum(dout) over the rows
// T is the type of activations and of the weights' gradients, W that of the weights: T, or float,
// rounded to T as it is packed where the machine makes products in bfloat16, and used as it is
// where it makes them in float.
// N rows of inp, C channels in, OC out.
#pragma once

#include "cpu/few_rows.h"

namespace llmc::LLMC_ISA {

// Calls each(row, column, v, n) for the vectors of a tile, n of whose elements exist.
template <typename Each>
[[gnu::always_inline]] inline void ForTile(const Tile& tile, const Each& each) {
  for (int64_t r = 0; r < tile.rows; ++r)
    ForVectors(tile.columns, [&](int64_t c, auto some) {
      each(tile.row + r, tile.column + c, Load(tile.data + r * tile.ld + c), some);
    });
}

// Of one vector of a tile, one for each of some results.
template <int kCount>
struct Vecs {
  Vec of[kCount];
};

// Streams results made of a tile into row-major tensors (..., columns): value(row, column, v, n)
// gives n elements of each.
template <int kResults, typename T, typename Value>
[[gnu::always_inline]] inline void StreamTile(const Tile& tile, int64_t columns,
                                              T* const (&results)[kResults], const Value& value) {
  constexpr int64_t kPair = 2 * kLanes;
  for (int64_t r = 0; r < tile.rows; ++r) {
    const int64_t row = tile.row + r, at = row * columns + tile.column;
    const float* data = tile.data + r * tile.ld;
    const int64_t paired = tile.columns / kPair * kPair;
    for (int64_t i = 0; i < paired; i += kPair) {
      const auto first = value(row, tile.column + i, Load(data + i), Whole{});
      const auto second = value(row, tile.column + i + kLanes, Load(data + i + kLanes), Whole{});
      for (int k = 0; k < kResults; ++k) StreamPair(results[k] + at + i, first.of[k], second.of[k]);
    }
    ForVectors(tile.columns - paired, [&](int64_t i, auto some) {
      i += paired;
      const auto rest = value(row, tile.column + i, Load(data + i), some);
      for (int k = 0; k < kResults; ++k) StreamUpTo(results[k] + at + i, rest.of[k], some);
    });
  }
}

// The elements of a tile of a row-major tensor (..., columns), laid out as tile.data is.
//
// An epilogue that reads one tensor and writes another reads through this, all of the tile before
// it writes any: where rows are a multiple of 4 KiB apart, a load that follows a store to the same
// place of another page waits for it, and took 160 cycles a vector.
template <typename T, typename P = typename PanelsOf<T>::Type>
class TileOf {
 public:
  TileOf(const Tile& tile, const T* data, int64_t columns) : tile_(tile) {
    ForTile(tile, [&](int64_t row, int64_t column, Vec, auto some) {
      Store(At(row, column), LoadUpTo(data + row * columns + column, some));
    });
  }
  Vec Get(int64_t row, int64_t column) { return Load(At(row, column)); }

 private:
  float* At(int64_t row, int64_t column) {
    return elements_ + (row - tile_.row) * tile_.ld + (column - tile_.column);
  }

  const Tile& tile_;
  alignas(64) float elements_[P::kMR * P::kNR];
};

// dbias (OC) = the sum of all rows of partial (blocks, padded), as many columns at a time as a task
// takes
inline void SumPartial(Threads& threads, const float* partial, int64_t blocks, int64_t padded,
                       int64_t OC, float* dbias) {
  constexpr int64_t kColumns = 256;
  ParallelFor(threads, CeilDiv(OC, kColumns), [&](int64_t task) {
    const int64_t begin = task * kColumns;
    SumOfBlocks(partial + begin, blocks, padded, Min(kColumns, OC - begin), dbias + begin);
  });
}

// dbias = sum of the rows of dout (N,OC): each block's sums, then the sum over the blocks
template <typename T>
void BiasGradient(Threads& threads, int64_t N, int64_t OC, const T* dout, float* dbias) {
  constexpr int64_t kRows = 128;
  const int64_t padded = RoundUp(OC, kLanes), blocks = CeilDiv(N, kRows);
  SharedScratch<float> scratch(blocks * padded);
  float* partial = scratch.data();
  ParallelFor(threads, blocks, [&](int64_t block) {
    float* sum = partial + block * padded;
    __builtin_memset(sum, 0, padded * sizeof(float));
    for (int64_t n = block * kRows; n < Min(N, (block + 1) * kRows); ++n)
      ForVectors(OC, [&](int64_t i, auto some) {
        Store(sum + i, Load(sum + i) + LoadUpTo(dout + n * OC + i, some));
      });
  });
  SumPartial(threads, partial, blocks, padded, OC, dbias);
}

// dbias of a dout (N,OC) that a product's epilogue makes, tile by tile: sums of each tile's rows in
// its columns, then over the tiles.
template <typename T>
class BiasOfTiles {
  static constexpr int64_t kRows = PanelsOf<T>::Type::kMR;

 public:
  // What an epilogue has of it.
  struct Sums {
    float* partial;
    int64_t padded;

    // Adds a vector of row `row` of dout, at `column`. Rows of a tile come in their order.
    [[gnu::always_inline]] void Add(int64_t row, int64_t column, Vec v) const {
      float* sum = partial + row / kRows * padded + column;
      Store(sum, row % kRows ? Load(sum) + v : v);
    }
  };

  BiasOfTiles(int64_t N, int64_t OC)
      : OC_(OC),
        padded_(RoundUp(OC, kLanes)),
        blocks_(CeilDiv(N, kRows)),
        partial_(blocks_ * padded_) {}

  Sums OfTiles() const { return {partial_.data(), padded_}; }
  void Sum(Threads& threads, float* dbias) const {
    SumPartial(threads, partial_.data(), blocks_, padded_, OC_, dbias);
  }

 private:
  const int64_t OC_, padded_, blocks_;
  SharedScratch<float> partial_;
};

template <typename T, typename W>
void MatmulForward(Threads& threads, int64_t N, int64_t C, int64_t OC, const T* inp,
                   const W* weight, const float* bias, T* out) {
  Linear(threads, N, C, OC, inp, weight, [=](const Tile& tile) {
    StreamTile(tile, OC, {out}, [=](int64_t, int64_t oc, Vec v, auto some) {
      return Vecs<1>{v + LoadUpTo(bias + oc, some)};
    });
  });
}

// dweight (OC,C) = dout_t (OC,N) inp (N,C); nothing where it is null: then it is to be left in its
// factors
template <typename T, typename G>
void WeightGradient(Threads& threads, int64_t N, int64_t C, int64_t OC, const Operand<T>& dout_t,
                    const T* inp, G* dweight) {
  if (!dweight) return;
  Gemm<T>(threads, OC, C, N, dout_t, Columns(inp, C), [=](const Tile& tile) {
    StreamTile(tile, C, {dweight}, [](int64_t, int64_t, Vec v, auto) { return Vecs<1>{v}; });
  });
}

// dinp and dweight: all but dbias
template <typename T, typename W>
void MatmulGradients(Threads& threads, int64_t N, int64_t C, int64_t OC, const T* dout,
                     const T* inp, const W* weight, T* dinp, T* dweight) {
  WeightGradient(threads, N, C, OC, Columns(dout, OC), inp, dweight);
  Gemm<T>(threads, N, C, OC, Rows(dout, OC), Columns(weight, C), [=](const Tile& tile) {
    StreamTile(tile, C, {dinp}, [](int64_t, int64_t, Vec v, auto) { return Vecs<1>{v}; });
  });
}

template <typename T, typename W>
void MatmulBackward(Threads& threads, int64_t N, int64_t C, int64_t OC, const T* dout,
                    const T* inp, const W* weight, T* dinp, T* dweight, float* dbias) {
  BiasGradient(threads, N, OC, dout, dbias);
  MatmulGradients(threads, N, C, OC, dout, inp, weight, dinp, dweight);
}

}  // namespace llmc::LLMC_ISA
