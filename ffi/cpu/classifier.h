// classifier (llmc_jax/ops/classifier.py), for rows of lnf (N,C) and the vocabulary wte (Vp,C):
//   logits = lnf wte^T, losses = logsumexp(logits[:V]) - logits[target]
//   dlogits = (softmax(logits[:V]) - onehot(target)) * dloss, 0 in the columns from V on
//   dlnf = dlogits wte, dwte = dlogits^T lnf
// A row with target < 0 is ignored: loss and gradient 0. The logits are never there as a whole:
//
// By rows: those of some rows exist at a time and become their own gradient in place; each such
// chunk reads wte and adds to dwte.
// By pieces of the vocabulary, where there are more rows and products are fast: a first product
// leaves only the log-sum-exp of each row, a second one the gradient of some columns of all rows,
// from which that piece of dwte comes whole. A third more products, an eighth of the traffic:
// 1,060 ms become 700 for 4,096 rows of GPT-2 124M in bfloat16 with AMX on two cores.
// Losses alone come from that first product, and need none of the logits in memory.
//
// How many rows or columns is a matter of the workspace that the caller has: XLA's, which is free
// for other things during the rest of the step.
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
    StreamFence();
  });
}

// By pieces from so many rows on: fewer are one chunk (llmc_jax/ops/classifier.py, ROWS).
constexpr int64_t kClassifierRows = 512;
// Columns that are packed, or whose gradient exists, at once.
constexpr int64_t kClassifierPiece = 4096;

// Memory for a part of the logits.
struct Workspace {
  float* data;
  int64_t size;
};

// e^(x - from), as exactly as a T is.
template <typename T>
Vec PowerOf(Vec x, float from) {
  return Power<T>::Of(x * Power<T>::kPerNat - from * Power<T>::kPerNat);
}

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

// One row's loss, and, over its logits, their gradient as T.
template <typename T>
float ClassifierRow(float* logits, int32_t target, float dloss, int64_t V, int64_t Vp) {
  T* dlogits = reinterpret_cast<T*>(logits);
  if (target < 0) {
    __builtin_memset(dlogits, 0, Vp * sizeof(T));
    return 0;
  }
  float max, total, target_logit = logits[target];
  RowSoftmax(logits, V, &max, &total);
  float factor = dloss / total, target_gradient = Exp(Broadcast(target_logit - max))[0] * factor;
  ForVectors(V, [&](int64_t i, auto some) {  // reading before writing, in ascending order
    StoreUpTo(dlogits + i, PowerOf<T>(LoadUpTo(logits + i, some), max) * factor, some);
  });
  FromFloat(target_gradient - dloss, &dlogits[target]);
  for (int64_t i = V; i < Vp; ++i) FromFloat(0, &dlogits[i]);
  return __builtin_logf(total) + max - target_logit;
}

// As Classifier does it by rows.
template <typename T, typename W>
void ClassifierByRows(Threads& threads, int64_t N, int64_t C, int64_t V, int64_t Vp,
                      const T* lnf, const W* wte, const int32_t* targets, const float* dlosses,
                      float* losses, T* dlnf, float* dwte, const Workspace& workspace) {
  const int64_t at_once = Min(N, workspace.size / (Vp + C));
  float *logits = workspace.data, *sum = logits + at_once * Vp;
  auto* dlogits = reinterpret_cast<const T*>(logits);
  constexpr int64_t kRatio = sizeof(float) / sizeof(T);  // a row of dlogits has the logits' place

  for (int64_t n0 = 0; n0 < N; n0 += at_once) {
    const int64_t rows = Min(at_once, N - n0);
    const T* inp = lnf + n0 * C;
    Gemm<T>(threads, rows, Vp, C, Rows(inp, C), Rows(wte, C), [&](const Tile& tile) {
      ForTile(tile, [&](int64_t n, int64_t v, Vec z, auto some) {
        StoreUpTo(logits + n * Vp + v, z, some);
      });
    });
    ParallelFor(threads, rows, [&](int64_t n) {
      losses[n0 + n] =
          ClassifierRow<T>(logits + n * Vp, targets[n0 + n], dlosses[n0 + n], V, Vp);
    });

    // dlnf: a piece of the vocabulary at a time, so that little is packed at once
    for (int64_t v0 = 0; v0 < Vp; v0 += kClassifierPiece) {
      const int64_t piece = Min(kClassifierPiece, Vp - v0);
      Gemm<T>(threads, rows, C, piece, Rows(dlogits + v0, Vp * kRatio), Columns(wte + v0 * C, C),
              [&](const Tile& tile) {
                ForTile(tile, [&](int64_t n, int64_t c, Vec v, auto some) {
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
            ForTile(tile, [&](int64_t v, int64_t c, Vec gradient, auto some) {
              StreamUpTo(dwte + v * C + c, gradient, some);
            });
          } else {
            TileOf<float, typename PanelsOf<T>::Type> before(tile, dwte, C);
            ForTile(tile, [&](int64_t v, int64_t c, Vec gradient, auto some) {
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

// Some logits of a row; lanes beyond them have no part in a largest or in a sum of e^z.
template <typename Count>
Vec LoadLogits(const float* p, Count some) {
  Vec z = LoadUpTo(p, some);
  for (int64_t lane = some; lane < kLanes; ++lane) z[lane] = -1e30f;
  return z;
}

// What logits of a row come to: their largest, and the sum of e^(z - largest).
inline void PartOf(const float* logits, int64_t count, float* largest, float* total) {
  Vec max = Broadcast(-1e30f), sum{};
  ForVectors(count, [&](int64_t i, auto n) { max = MaxOf(max, LoadLogits(logits + i, n)); });
  *largest = Largest(max);
  ForVectors(count, [&](int64_t i, auto n) { sum += Exp(LoadLogits(logits + i, n) - *largest); });
  *total = Sum(sum);
}

// The log-sum-exp of a row of which `before` is known, from more parts of it.
inline float LogSumExp(float before, const float* largest, const float* total, int64_t parts) {
  Vec max = Broadcast(before), sum{};
  ForVectors(parts, [&](int64_t i, auto n) { max = MaxOf(max, LoadLogits(largest + i, n)); });
  const float m = Largest(max);
  ForVectors(parts, [&](int64_t i, auto n) {
    sum += LoadUpTo(total + i, n) * Exp(LoadLogits(largest + i, n) - m);
  });
  return m + __builtin_logf(Sum(sum) + Exp(Broadcast(before - m))[0]);
}

// losses (N), and the log-sum-exp of each row, without any logits in memory.
template <typename T, typename W>
void ClassifierLosses(Threads& threads, int64_t N, int64_t C, int64_t V, const T* lnf,
                      const W* wte, const int32_t* targets, float* losses, float* lse) {
  constexpr int64_t kColumns = PanelsOf<T>::Type::kNR;  // of a tile
  const int64_t at_once = N > kClassifierRows ? kClassifierPiece : V;
  const int64_t tiles = CeilDiv(Min(at_once, V), kColumns);
  SharedScratch<float> target_scratch(N), part_scratch(2 * N * tiles);
  float* target_logit = target_scratch.data();
  float *largest = part_scratch.data(), *total = largest + N * tiles;  // (N,tiles)
  for (int64_t n = 0; n < N; ++n) lse[n] = -1e30f;
  for (int64_t v0 = 0; v0 < V; v0 += at_once) {
    const int64_t piece = Min(at_once, V - v0);
    Gemm<T>(threads, N, piece, C, Rows(lnf, C), Rows(wte + v0 * C, C), [&](const Tile& tile) {
      for (int64_t r = 0; r < tile.rows; ++r) {
        const int64_t n = tile.row + r, target = targets[n] - v0 - tile.column;
        const int64_t part = n * tiles + tile.column / kColumns;
        const float* logits = tile.data + r * tile.ld;
        PartOf(logits, tile.columns, &largest[part], &total[part]);
        if (0 <= target && target < tile.columns) target_logit[n] = logits[target];
      }
    });
    ParallelFor(threads, N, [&](int64_t n) {
      lse[n] = LogSumExp(lse[n], largest + n * tiles, total + n * tiles, CeilDiv(piece, kColumns));
    });
  }
  for (int64_t n = 0; n < N; ++n) losses[n] = targets[n] < 0 ? 0 : lse[n] - target_logit[n];
}

// A piece of dlogits has rows of so many more elements, or they would be a multiple of 4 KiB apart
// and share a few places of the caches.
constexpr int64_t kClassifierGap = 32;

// dlogits of `count` neighbours in a row, of which those from V on are 0; target may be elsewhere.
template <typename T>
void GradientOfLogits(const float* logits, int64_t count, int64_t V, int64_t target, float lse,
                      float dloss, T* dlogits) {
  ForVectors(count, [&](int64_t i, auto some) {
    StoreUpTo(dlogits + i, PowerOf<T>(LoadUpTo(logits + i, some), lse) * dloss, some);
  });
  if (0 <= target && target < count)
    FromFloat(PowerOf<T>(Broadcast(logits[target]), lse)[0] * dloss - dloss, &dlogits[target]);
  for (int64_t i = Max<int64_t>(V, 0); i < count; ++i) FromFloat(0, &dlogits[i]);
}

// Columns of dlogits that a workspace has room for behind a row of dlnf for each of N rows.
template <typename T>
int64_t PieceThatFits(int64_t N, int64_t C, const Workspace& workspace) {
  const int64_t elements = (workspace.size - N * C) * int64_t{sizeof(float) / sizeof(T)};
  const int64_t columns = Min(kClassifierPiece, elements / N - kClassifierGap);
  return Max<int64_t>(columns, 0) / kLanes * kLanes;
}

// As Classifier does it by pieces of the vocabulary.
template <typename T, typename W>
void ClassifierByPieces(Threads& threads, int64_t N, int64_t C, int64_t V, int64_t Vp,
                        const T* lnf, const W* wte, const int32_t* targets, const float* dlosses,
                        float* losses, T* dlnf, float* dwte, const Workspace& workspace) {
  using P = typename PanelsOf<T>::Type;
  SharedScratch<float> lse_scratch(N);
  float* lse = lse_scratch.data();
  ClassifierLosses(threads, N, C, V, lnf, wte, targets, losses, lse);

  float* sum = workspace.data;
  T* dlogits = reinterpret_cast<T*>(sum + N * C);
  const int64_t at_once = PieceThatFits<T>(N, C, workspace);
  __builtin_memset(sum, 0, N * C * sizeof(float));
  for (int64_t v0 = 0; v0 < Vp; v0 += at_once) {
    const int64_t piece = Min(at_once, Vp - v0), ld = at_once + kClassifierGap;
    Gemm<T>(threads, N, piece, C, Rows(lnf, C), Rows(wte + v0 * C, C), [&](const Tile& tile) {
      for (int64_t r = 0; r < tile.rows; ++r) {
        const int64_t n = tile.row + r, v = v0 + tile.column;
        GradientOfLogits(tile.data + r * tile.ld, tile.columns, V - v, targets[n] - v, lse[n],
                         targets[n] < 0 ? 0 : dlosses[n], dlogits + n * ld + tile.column);
      }
    });
    Gemm<T>(
        threads, N, C, piece, Rows(dlogits, ld), Columns(wte + v0 * C, C),
        [&](const Tile& tile) {
          TileOf<float, P> before(tile, sum, C);
          ForTile(tile, [&](int64_t n, int64_t c, Vec v, auto some) {
            v += before.Get(n, c);
            if (v0 + piece == Vp)
              StoreUpTo(dlnf + n * C + c, v, some);
            else
              StoreUpTo(sum + n * C + c, v, some);
          });
        },
        [&](const Tile& tile) { FetchTile(tile, sum, C); });
    WeightGradient(threads, N, C, piece, Columns(dlogits, ld), lnf, dwte + v0 * C);
  }
}

// Losses, and with dlosses the gradients; losses alone (and no workspace) where it is null.
template <typename T, typename W>
void Classifier(Threads& threads, int64_t N, int64_t C, int64_t V, int64_t Vp, const T* lnf,
                const W* wte, const int32_t* targets, const float* dlosses, float* losses, T* dlnf,
                float* dwte, float* workspace_data, int64_t workspace_size) {
  if (!dlosses) {
    SharedScratch<float> lse(N);
    return ClassifierLosses(threads, N, C, V, lnf, wte, targets, losses, lse.data());
  }
  const Workspace workspace{workspace_data, workspace_size};
  const bool by_pieces = PanelsOf<T>::Type::kTiles && N > kClassifierRows &&
                         PieceThatFits<T>(N, C, workspace) > 0;
  auto classifier = by_pieces ? ClassifierByPieces<T, W> : ClassifierByRows<T, W>;
  classifier(threads, N, C, V, Vp, lnf, wte, targets, dlosses, losses, dlnf, dwte, workspace);
}

}  // namespace llmc::LLMC_ISA
