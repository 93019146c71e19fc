// classifier (llmc_jax/ops/classifier.py), for rows of lnf (N,C) and the vocabulary wte (Vp,C):
//   logits = lnf wte^T, losses = logsumexp(logits[:V]) - logits[target]
//   dlogits = (softmax(logits[:V]) - onehot(target)) * dloss, 0 in the columns from V on
//   dlnf = dlogits wte, dwte = dlogits^T lnf
// A row with target < 0 is ignored: loss and gradient 0.
//
// No logit z leaves the tile in which it is made: there it becomes a power, e^(z - from), where
// `from` is the logit of the row's target, which one dot product tells beforehand. Then
//   total = sum(powers), which is 1 or more, loss = log(total)
//   dlogits = powers * factor, factor = dloss / total, but (power - total) * factor of the target
// Powers are stored once, as T, of some rows at a time; each such chunk reads wte and adds to
// dwte. A row's factor, known after all of its powers, scales what dlnf comes to and the lnf that
// dwte is made of. The target's column, where dlogits are largest, is 0 among the powers and
// added to both gradients in float.
#pragma once

#include "cpu/matmul.h"

namespace llmc::LLMC_ISA {

// logits (N,Vp) alone, in float, for those who want to see them.
template <typename T, typename W>
void Logits(Threads& threads, int64_t N, int64_t C, int64_t Vp, const T* lnf, const W* wte,
            float* logits) {
  Linear(threads, N, C, Vp, lnf, wte, [&](const Tile& tile) {
    ForTile(tile, [&](int64_t n, int64_t v, Vec z, auto some) {
      StreamUpTo(logits + n * Vp + v, z, some);
    });
  });
}

// Tokens whose rows of wte are packed at once, for dlnf.
constexpr int64_t kClassifierPiece = 4096;

inline float LargestOf(const float* x, int64_t count) {
  float largest = x[0];
  for (int64_t i = 1; i < count; ++i) largest = Max(largest, x[i]);
  return largest;
}

// e^x, to be added up: of logits that have the 24 bits of a float, or of those that come from 8.
template <typename T>
Vec Summand(Vec x) {
#if defined(__AVX512DQ__)
  if constexpr (sizeof(T) < sizeof(float)) {
    // 2^t = 2^n 2^r, |r| <= 1/2, to 2e-7 + |t| 6e-8: 2^r by the best polynomial of degree 5 that is
    // exact at 0, where the target is, so that a sure target's loss is 0
    const Vec t = x * 1.44269504f, r = (Vec)_mm512_reduce_ps((__m512)t, 0);
    Vec p = r * 1.32647273e-3f + 9.67151299e-3f;
    p = p * r + 5.55073358e-2f;
    p = p * r + 0.240222424f;
    p = p * r + 0.693147004f;
    p = p * r + 1.f;
    return (Vec)_mm512_scalef_ps((__m512)p, (__m512)(t - r));
  }
#endif
  return Exp(x);
}

// What is known of some rows' logits, each (N).
struct RowSums {
  float* from;    // what they are measured from
  float* total;   // the sum of their powers
  float* target;  // that of the target; of an ignored row nothing
};

// from = the logit of each target, to the rounding of a product; of ignored rows that of token 0.
template <typename T, typename W>
void MeasureFromTargets(Threads& threads, int64_t N, int64_t C, const T* lnf, const W* wte,
                        const int32_t* targets, const RowSums& rows) {
  ParallelFor(threads, N, [&](int64_t n) {
    const W* weight = wte + Max(targets[n], 0) * C;
    Vec sum{};
    ForVectors(C, [&](int64_t c, auto some) {
      sum += LoadUpTo(lnf + n * C + c, some) * ByFloats::OfWeight<T>(weight + c, some);
    });
    rows.from[n] = Sum(sum);
  });
}

// A number for each tile of columns and each row, and what those of a row come to.
template <typename T>
class PartsOfRows {
  static constexpr int64_t kColumns = PanelsOf<T>::Type::kNR;

 public:
  // What an epilogue has of it.
  struct Parts {
    float* data;
    int64_t stride;

    float* At(const Tile& tile, int64_t r) const {
      return data + tile.column / kColumns * stride + tile.row + r;
    }
  };

  PartsOfRows(int64_t N, int64_t V)
      : tiles_(CeilDiv(V, kColumns)), stride_(RoundUp(N, kLanes)), parts_(tiles_ * stride_) {}

  Parts OfTiles() const { return {parts_.data(), stride_}; }
  // result (N) = all parts of each row, merged two at a time, those of 32 tiles first: a long sum
  // of floats would lose digits.
  template <typename Merge>
  void Merged(Threads& threads, int64_t N, const Merge& merge, float* result) const {
    ParallelFor(threads, stride_ / kLanes, [&](int64_t i) {
      const float* parts = parts_.data() + i * kLanes;
      Vec all = Load(parts);
      for (int64_t begin = 1; begin < tiles_; begin += 32) {
        Vec some = Load(parts + begin * stride_);
        for (int64_t tile = begin + 1; tile < Min(tiles_, begin + 32); ++tile)
          some = merge(some, Load(parts + tile * stride_));
        all = merge(all, some);
      }
      StoreUpTo(result + i * kLanes, all, Min<int64_t>(kLanes, N - i * kLanes));
    });
  }

 private:
  const int64_t tiles_, stride_;
  SharedScratch<float> parts_;
};

// The sum of the powers of a row of a tile, which go to `powers` (N,Vp) as T where they are kept.
template <bool keep, typename T>
[[gnu::always_inline]] inline float SumRow(const Tile& row, float from, int64_t Vp, T* powers) {
  Vec sum{};
  auto power_of = [&](int64_t, int64_t, Vec z, auto some) __attribute__((always_inline)) {
    Vec power = Summand<T>(z - from);
    for (int64_t lane = some; lane < kLanes; ++lane) power[lane] = 0;
    sum += power;
    return Vecs<1>{power};
  };
  if constexpr (keep)
    StreamTile(row, Vp, {powers}, power_of);
  else
    ForTile(row, power_of);
  return Sum(sum);
}

// total and target, and the powers (N,Vp) where they are kept.
template <bool keep, typename T, typename W>
void SumPowers(Threads& threads, int64_t N, int64_t C, int64_t V, int64_t Vp, const T* lnf,
               const W* wte, const int32_t* targets, T* powers, const RowSums& rows) {
  PartsOfRows<T> parts(N, V);
  const auto part = parts.OfTiles();
  Gemm<T>(threads, N, V, C, Rows(lnf, C), Rows(wte, C),
          // inlined where it runs between the products of tiles
          [=](const Tile& tile) __attribute__((always_inline)) {
            for (int64_t r = 0; r < tile.rows; ++r) {
              const int64_t n = tile.row + r, target = targets[n] - tile.column;
              const float* logits = tile.data + r * tile.ld;
              if (0 <= target && target < tile.columns) rows.target[n] = logits[target];
              const Tile row{n, tile.column, 1, tile.columns, logits, tile.ld};
              *part.At(tile, r) = SumRow<keep>(row, rows.from[n], Vp, powers);
            }
          });
  parts.Merged(threads, N, [](Vec a, Vec b) { return a + b; }, rows.total);
}

// from = the largest logit of each row.
template <typename T, typename W>
void MeasureFromLargest(Threads& threads, int64_t N, int64_t C, int64_t V, const T* lnf,
                        const W* wte, const RowSums& rows) {
  PartsOfRows<T> parts(N, V);
  const auto part = parts.OfTiles();
  Gemm<T>(threads, N, V, C, Rows(lnf, C), Rows(wte, C), [=](const Tile& tile) {
    for (int64_t r = 0; r < tile.rows; ++r)
      *part.At(tile, r) = LargestOf(tile.data + r * tile.ld, tile.columns);
  });
  parts.Merged(threads, N, MaxOf, rows.from);
}

// A total beyond which powers may be too large for a float: that of a loss of 60.
constexpr float kLargestTotal = 1e26f;

// All of `rows`, and the powers unless they are null. Where a total is too large, all are measured
// from their largest logit instead.
template <typename T, typename W>
void Powers(Threads& threads, int64_t N, int64_t C, int64_t V, int64_t Vp, const T* lnf,
            const W* wte, const int32_t* targets, T* powers, const RowSums& rows) {
  const auto sum = powers ? SumPowers<true, T, W> : SumPowers<false, T, W>;
  MeasureFromTargets(threads, N, C, lnf, wte, targets, rows);
  sum(threads, N, C, V, Vp, lnf, wte, targets, powers, rows);
  if (LargestOf(rows.total, N) <= kLargestTotal) return;
  MeasureFromLargest(threads, N, C, V, lnf, wte, rows);
  sum(threads, N, C, V, Vp, lnf, wte, targets, powers, rows);
}

// Losses (N) of rows whose powers are summed.
inline void Losses(int64_t N, const int32_t* targets, const RowSums& rows, float* losses) {
  for (int64_t n = 0; n < N; ++n) {
    const float loss = __builtin_logf(rows.total[n]) + (rows.from[n] - rows.target[n]);
    losses[n] = targets[n] < 0 ? 0 : loss;
  }
}

// What gradients are made of besides lnf and wte, for N rows.
template <typename T>
struct GradientParts {
  T* powers;      // (N,Vp), 0 at targets and from V on
  T* scaled;      // (N,C), lnf times the factors
  float* factor;  // (N)
  float* target;  // (N), dlogits of the targets
};

template <typename T>
void MakeGradientParts(Threads& threads, int64_t N, int64_t C, int64_t V, int64_t Vp, const T* lnf,
                       const int32_t* targets, const float* dlosses, const RowSums& rows,
                       const GradientParts<T>& parts) {
  ParallelFor(threads, N, [&](int64_t n) {
    T* powers = parts.powers + n * Vp;
    const float total = rows.total[n], factor = targets[n] < 0 ? 0 : dlosses[n] / total;
    const float power = Exp(Broadcast(rows.target[n] - rows.from[n]))[0];
    parts.factor[n] = factor;
    parts.target[n] = targets[n] < 0 ? 0 : (power - total) * factor;
    ForVectors(C, [&](int64_t c, auto some) {
      StoreUpTo(parts.scaled + n * C + c, LoadUpTo(lnf + n * C + c, some) * factor, some);
    });
    FromFloat(0, &powers[Max(targets[n], 0)]);
    for (int64_t v = V; v < Vp; ++v) FromFloat(0, &powers[v]);
  });
}

// dlnf, a piece of the vocabulary at a time, so that little of it is packed at once.
template <typename T, typename W>
void ClassifierInputGradient(Threads& threads, int64_t N, int64_t C, int64_t Vp, const W* wte,
                             const int32_t* targets, const GradientParts<T>& parts, T* dlnf) {
  SharedScratch<float> scratch(N * C);
  float* sum = scratch.data();
  for (int64_t v0 = 0; v0 < Vp; v0 += kClassifierPiece) {
    const int64_t piece = Min(kClassifierPiece, Vp - v0);
    Gemm<T>(
        threads, N, C, piece, Rows(parts.powers + v0, Vp), Columns(wte + v0 * C, C),
        [=](const Tile& tile) {
          ForTile(tile, [&](int64_t n, int64_t c, Vec v, auto some) {
            if (v0) v += LoadUpTo(sum + n * C + c, some);
            if (v0 + piece < Vp) return StoreUpTo(sum + n * C + c, v, some);
            const W* weight = wte + Max(targets[n], 0) * C;
            v = v * parts.factor[n] + ByFloats::OfWeight<T>(weight + c, some) * parts.target[n];
            StreamUpTo(dlnf + n * C + c, v, some);
          });
        },
        [&](const Tile& tile) {
          if (v0) FetchTile(tile, sum, C);
        });
  }
}

// dwte (Vp,C) = or += what the rows' other columns make of it
template <typename T>
void ClassifierWeightGradient(Threads& threads, int64_t N, int64_t C, int64_t Vp,
                              const GradientParts<T>& parts, bool accumulate, float* dwte) {
  const auto powers_t = Columns<T>(parts.powers, Vp);
  if (!accumulate) return WeightGradient(threads, N, C, Vp, powers_t, parts.scaled, dwte);
  Gemm<T>(
      threads, Vp, C, N, powers_t, Columns<T>(parts.scaled, C),
      [=](const Tile& tile) {
        TileOf<float, typename PanelsOf<T>::Type> before(tile, dwte, C);
        ForTile(tile, [&](int64_t v, int64_t c, Vec gradient, auto some) {
          StreamUpTo(dwte + v * C + c, before.Get(v, c) + gradient, some);
        });
      },
      [&](const Tile& tile) { FetchTile(tile, dwte, C); });
}

// dwte += what the rows' targets make of it, in the order of the rows: a task takes some columns.
template <typename T>
void AddTargets(Threads& threads, int64_t N, int64_t C, const T* lnf, const int32_t* targets,
                const float* dtarget, float* dwte) {
  constexpr int64_t kColumns = 128;
  ParallelFor(threads, CeilDiv(C, kColumns), [&](int64_t block) {
    const int64_t c = block * kColumns;
    for (int64_t n = 0; n < N; ++n) {
      if (targets[n] < 0) continue;
      float* weight = dwte + targets[n] * C + c;
      ForVectors(Min(kColumns, C - c), [&](int64_t i, auto some) {
        const Vec more = LoadUpTo(lnf + n * C + c + i, some) * dtarget[n];
        StoreUpTo(weight + i, LoadUpTo(weight + i, some) + more, some);
      });
    }
  });
}

// Losses of some rows, and with dlosses the gradients; dwte is added to where `accumulate`.
template <typename T, typename W>
void ClassifierOfRows(Threads& threads, int64_t N, int64_t C, int64_t V, int64_t Vp, const T* lnf,
                      const W* wte, const int32_t* targets, const float* dlosses, float* losses,
                      T* dlnf, float* dwte, bool accumulate, T* powers) {
  SharedScratch<float> numbers(5 * N);
  float* number = numbers.data();
  const RowSums rows{number, number + N, number + 2 * N};
  Powers(threads, N, C, V, Vp, lnf, wte, targets, dlosses ? powers : nullptr, rows);
  Losses(N, targets, rows, losses);
  if (!dlosses) return;
  SharedScratch<T> scaled(N * C);
  const GradientParts<T> parts{powers, scaled.data(), number + 3 * N, number + 4 * N};
  MakeGradientParts(threads, N, C, V, Vp, lnf, targets, dlosses, rows, parts);
  ClassifierInputGradient(threads, N, C, Vp, wte, targets, parts, dlnf);
  ClassifierWeightGradient(threads, N, C, Vp, parts, accumulate, dwte);
  AddTargets(threads, N, C, lnf, targets, parts.target, dwte);
}

// Losses, and with dlosses the gradients; losses alone where it is null. `at_once` rows are worked
// on at a time: powers, for gradients, is (at_once,Vp).
template <typename T, typename W>
void Classifier(Threads& threads, int64_t N, int64_t C, int64_t V, int64_t Vp, const T* lnf,
                const W* wte, const int32_t* targets, const float* dlosses, float* losses, T* dlnf,
                float* dwte, T* powers, int64_t at_once) {
  for (int64_t n = 0; n < N; n += at_once)
    ClassifierOfRows(threads, Min(at_once, N - n), C, V, Vp, lnf + n * C, wte, targets + n,
                     dlosses ? dlosses + n : nullptr, losses + n, dlnf ? dlnf + n * C : nullptr,
                     dwte, /*accumulate=*/n > 0, powers);
}

}  // namespace llmc::LLMC_ISA
