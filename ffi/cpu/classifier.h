// classifier (llmc_jax/ops/classifier.py), for rows of lnf (N,C) and the vocabulary wte (Vp,C):
//   logits = lnf wte^T, losses = logsumexp(logits[:V]) - logits[target]
//   dlogits = (softmax(logits[:V]) - onehot(target)) * dloss, 0 in the columns from V on
//   dlnf = dlogits wte, dwte = dlogits^T lnf
// A row with target < 0 is ignored: loss and gradient 0. The logits are never there as a whole:
//
// By rows: those of kClassifierRows rows exist at a time and become their own gradient in place;
// each such chunk reads wte and adds to dwte.
// By pieces of the vocabulary, where there are more rows and products are fast: a first product
// leaves only the log-sum-exp of each row, a second one the gradient of kClassifierPiece columns
// of all rows, from which that piece of dwte comes whole. A third more products, an eighth of the
// traffic: 1,060 ms become 700 for 4,096 rows of GPT-2 124M in bfloat16 with AMX on two cores.
#pragma once

#include "cpu/matmul.h"

namespace llmc::LLMC_ISA {

// logits (N,Vp) alone, in float, for those who want to see them.
template <typename T, typename W>
void Logits(Threads& threads, int64_t N, int64_t C, int64_t Vp, const T* lnf, const W* wte,
            float* logits) {
  Linear(threads, N, C, Vp, lnf, wte, [&](const Tile& tile) {
    ForTile(tile, [&](int64_t n, int64_t v, Vec z, int64_t some) {
      StreamUpTo(logits + n * Vp + v, z, some);
    });
    StreamFence();
  });
}

// Rows whose logits exist at once: more of them mean fewer passes over dwte, and more memory.
constexpr int64_t kClassifierRows = 512;
// Columns that are packed, or whose gradient exists, at once.
constexpr int64_t kClassifierPiece = 4096;

// The largest of x[0 .. n) and the sum of e^(x - largest).
inline void RowSoftmax(const float* x, int64_t n, float* largest, float* total) {
  Vec max = Broadcast(x[0]);
  int64_t whole = n / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) max = MaxOf(max, Load(x + i));
  float m = Largest(max);
  for (int64_t i = whole; i < n; ++i) m = Max(m, x[i]);
  // in chunks: over a vocabulary of 50,257 one float would lose three digits
  constexpr int64_t kChunk = 64 * kLanes;
  double sum = 0;
  for (int64_t start = 0; start < whole; start += kChunk) {
    Vec part{};
    for (int64_t i = start; i < Min(whole, start + kChunk); i += kLanes)
      part += Exp(Load(x + i) - m);
    sum += Sum(part);
  }
  for (int64_t i = whole; i < n; ++i) sum += Exp(Broadcast(x[i] - m))[0];
  *largest = m;
  *total = static_cast<float>(sum);
}

// One row's loss, and, over its logits, their gradient as T (where dloss is not null).
template <typename T>
float ClassifierRow(float* logits, int32_t target, const float* dloss, int64_t V, int64_t Vp) {
  T* dlogits = reinterpret_cast<T*>(logits);
  if (target < 0) {
    if (dloss) __builtin_memset(dlogits, 0, Vp * sizeof(T));
    return 0;
  }
  float max, total, target_logit = logits[target];
  RowSoftmax(logits, V, &max, &total);
  if (dloss) {
    float factor = *dloss / total, target_gradient = Exp(Broadcast(target_logit - max))[0] * factor;
    for (int64_t i = 0; i < V; i += kLanes) {  // reading before writing, in ascending order
      int64_t some = Min<int64_t>(kLanes, V - i);
      Vec gradient = Exp(LoadUpTo(logits + i, some) - max) * factor;
      StoreUpTo(dlogits + i, gradient, some);
    }
    FromFloat(target_gradient - *dloss, &dlogits[target]);
    for (int64_t i = V; i < Vp; ++i) FromFloat(0, &dlogits[i]);
  }
  return __builtin_logf(total) + max - target_logit;
}

// As Classifier does it by rows.
template <typename T, typename W>
void ClassifierByRows(Threads& threads, int64_t N, int64_t C, int64_t V, int64_t Vp,
                      const T* lnf, const W* wte, const int32_t* targets, const float* dlosses,
                      float* losses, T* dlnf, float* dwte) {
  SharedScratch<float> logits_scratch(Min(N, kClassifierRows) * Vp);
  SharedScratch<float> sum_scratch(Min(N, kClassifierRows) * C);
  float *logits = logits_scratch.data(), *sum = sum_scratch.data();
  auto* dlogits = reinterpret_cast<const T*>(logits);
  constexpr int64_t kRatio = sizeof(float) / sizeof(T);  // a row of dlogits has the logits' place

  for (int64_t n0 = 0; n0 < N; n0 += kClassifierRows) {
    const int64_t rows = Min(kClassifierRows, N - n0);
    const T* inp = lnf + n0 * C;
    Gemm<T>(threads, rows, Vp, C, Rows(inp, C), Rows(wte, C), [&](const Tile& tile) {
      ForTile(tile, [&](int64_t n, int64_t v, Vec z, int64_t some) {
        StoreUpTo(logits + n * Vp + v, z, some);
      });
    });
    ParallelFor(threads, rows, [&](int64_t n) {
      losses[n0 + n] = ClassifierRow<T>(logits + n * Vp, targets[n0 + n],
                                        dlosses ? dlosses + n0 + n : nullptr, V, Vp);
    });
    if (!dlosses) continue;

    // dlnf: a piece of the vocabulary at a time, so that little is packed at once
    for (int64_t v0 = 0; v0 < Vp; v0 += kClassifierPiece) {
      const int64_t piece = Min(kClassifierPiece, Vp - v0);
      Gemm<T>(threads, rows, C, piece, Rows(dlogits + v0, Vp * kRatio), Columns(wte + v0 * C, C),
              [&](const Tile& tile) {
                ForTile(tile, [&](int64_t n, int64_t c, Vec v, int64_t some) {
                  float* at = sum + n * C + c;
                  if (v0) v += LoadUpTo(at, some);
                  if (v0 + piece == Vp)
                    StreamUpTo(dlnf + (n0 + n) * C + c, v, some);
                  else
                    StoreUpTo(at, v, some);
                });
                StreamFence();
              });
    }
    Gemm<T>(
        threads, Vp, C, rows, Columns(dlogits, Vp * kRatio), Columns(inp, C),
        [&](const Tile& tile) {
          if (n0 == 0) {
            ForTile(tile, [&](int64_t v, int64_t c, Vec gradient, int64_t some) {
              StreamUpTo(dwte + v * C + c, gradient, some);
            });
          } else {
            TileOf<float, typename PanelsOf<T>::Type> before(tile, dwte, C);
            ForTile(tile, [&](int64_t v, int64_t c, Vec gradient, int64_t some) {
              StreamUpTo(dwte + v * C + c, before.Get(v, c) + gradient, some);
            });
          }
          StreamFence();
        },
        [&](const Tile& tile) {
          if (n0) FetchTile(tile, dwte, C);
        });
  }
}

// What is known of the log-sum-exp of each row after some of its logits, a lane at a time.
class RunningSoftmax {
 public:
  explicit RunningSoftmax(int64_t N) : largest_(N * kLanes), total_(N * kLanes) {
    for (int64_t i = 0; i < N * kLanes; ++i) largest_.data()[i] = -1e30f, total_.data()[i] = 0;
  }

  // Takes in the logits z of row n, of which the first `some` exist.
  void Add(int64_t n, Vec z, int64_t some) {
    for (int64_t lane = some; lane < kLanes; ++lane) z[lane] = -1e30f;
    float *largest = largest_.data() + n * kLanes, *total = total_.data() + n * kLanes;
    Vec before = Load(largest), after = MaxOf(before, z), sum = Load(total);
    Store(largest, after);
    Store(total, sum * Exp(before - after) + Exp(z - after));
  }

  float LogSumExp(int64_t n) const {
    Vec largest = Load(largest_.data() + n * kLanes), total = Load(total_.data() + n * kLanes);
    float max = Largest(largest);
    return max + __builtin_logf(Sum(total * Exp(largest - max)));
  }

 private:
  SharedScratch<float> largest_, total_;
};

// As Classifier does it by pieces of the vocabulary.
template <typename T, typename W>
void ClassifierByPieces(Threads& threads, int64_t N, int64_t C, int64_t V, int64_t Vp,
                        const T* lnf, const W* wte, const int32_t* targets, const float* dlosses,
                        float* losses, T* dlnf, float* dwte) {
  using P = typename PanelsOf<T>::Type;
  SharedScratch<float> lse_scratch(N), target_scratch(N);
  float *lse = lse_scratch.data(), *target_logit = target_scratch.data();
  RunningSoftmax softmax(N);
  for (int64_t v0 = 0; v0 < V; v0 += kClassifierPiece) {
    const int64_t piece = Min(kClassifierPiece, V - v0);
    Gemm<T, true>(
        threads, N, piece, C, Rows(lnf, C), Rows(wte + v0 * C, C),
        [&](const Tile& tile) {
          ForTile(tile, [&](int64_t n, int64_t v, Vec z, int64_t some) {
            softmax.Add(n, z, some);
            int64_t lane = targets[n] - v0 - v;
            if (0 <= lane && lane < some) target_logit[n] = z[lane];
          });
        });
  }
  for (int64_t n = 0; n < N; ++n) {
    lse[n] = softmax.LogSumExp(n);
    losses[n] = targets[n] < 0 ? 0 : lse[n] - target_logit[n];
  }
  if (!dlosses) return;

  SharedScratch<T> dlogits_scratch(N * kClassifierPiece);
  SharedScratch<float> sum_scratch(N * C);
  T* dlogits = dlogits_scratch.data();
  float* sum = sum_scratch.data();
  __builtin_memset(sum, 0, N * C * sizeof(float));
  for (int64_t v0 = 0; v0 < Vp; v0 += kClassifierPiece) {
    const int64_t piece = Min(kClassifierPiece, Vp - v0);
    Gemm<T>(
        threads, N, piece, C, Rows(lnf, C), Rows(wte + v0 * C, C),
        [&](const Tile& tile) {
          ForTile(tile, [&](int64_t n, int64_t v, Vec z, int64_t some) {
            const float dloss = targets[n] < 0 ? 0 : dlosses[n];
            Vec gradient = Exp(z - lse[n]) * dloss;
            int64_t lane = targets[n] - v0 - v;
            if (0 <= lane && lane < kLanes) gradient[lane] -= dloss;
            for (lane = Max<int64_t>(0, V - v0 - v); lane < kLanes; ++lane) gradient[lane] = 0;
            StoreUpTo(dlogits + n * piece + v, gradient, some);
          });
        });
    Gemm<T>(
        threads, N, C, piece, Rows(dlogits, piece), Columns(wte + v0 * C, C),
        [&](const Tile& tile) {
          TileOf<float, P> before(tile, sum, C);
          ForTile(tile, [&](int64_t n, int64_t c, Vec v, int64_t some) {
            v += before.Get(n, c);
            if (v0 + piece == Vp)
              StoreUpTo(dlnf + n * C + c, v, some);
            else
              StoreUpTo(sum + n * C + c, v, some);
          });
        },
        [&](const Tile& tile) { FetchTile(tile, sum, C); });
    WeightGradient(threads, N, C, piece, dlogits, lnf, dwte + v0 * C);
  }
}

// Losses alone where dlosses is null.
template <typename T, typename W>
void Classifier(Threads& threads, int64_t N, int64_t C, int64_t V, int64_t Vp, const T* lnf,
                const W* wte, const int32_t* targets, const float* dlosses, float* losses, T* dlnf,
                float* dwte) {
  const bool by_pieces = PanelsOf<T>::Type::kTiles && N > kClassifierRows;
  auto classifier = by_pieces ? ClassifierByPieces<T, W> : ClassifierByRows<T, W>;
  classifier(threads, N, C, V, Vp, lnf, wte, targets, dlosses, losses, dlnf, dwte);
}

}  // namespace llmc::LLMC_ISA
