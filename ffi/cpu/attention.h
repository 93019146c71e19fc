// attention (llmc_jax/ops/attention.py): causal, on packed qkv, for each batch b and head h
//   out = softmax(q k^T / sqrt(HS)) v, lse = logsumexp of the scaled scores
//   dscores = att * (datt - sum_d(dout * out)) / sqrt(HS), att = e^(scores - lse), datt = dout v^T
//   dq = dscores k, dk = dscores^T q, dv = att^T dout
//
// Tiles of keys by queries with an online softmax (Milakov & Gimelshein 2018, arXiv:1805.02867;
// Dao et al. 2022, arXiv:2205.14135): nothing of size T x T, and no tile after the diagonal. Every
// product is P::Micro on panels: of q, k, v and dout, packed once, and of att and dscores, whose
// tiles have the orientation in which they become panels of B without a transpose. A task is a
// head; with threads to spare, a part of one. No sum depends on it, nor so on the threads.
//
// Milliseconds on a Sapphire Rapids Xeon, forward / backward, for B=4, T=1024, NH=12, HS=64, the
// least of several runs of the kernel alone (medians in JAX: benchmarks/results/cpu_ops.md):
//                      bfloat16    float
//   AMX, two cores     4.7 / 11    22 / 52    (PyTorch's SDPA in bfloat16: 14 / 74)
//   AMX, one core       11 / 23    46 / 107
//   AVX-512, one core   40 / 100   46 / 107
//   AVX2, one core      68 / 167   75 / 178
//   portable, one core 203 / 505  220 / 524
// With AMX the products take a bit more than half of the time, the weights and their packing most
// of the rest; a core does not overlap the two by itself.
#pragma once

#include <type_traits>

#include "cpu/gemm.h"

namespace llmc::LLMC_ISA {

// A step of a panel from its elements along K, rounded to nearest.
inline Word StepOf(Floats, const Vec* v) { return (Word)v[0]; }
inline Word StepOf(Pairs, const Vec* v) {
  return (((Word)v[0] + 0x8000) >> 16) | (((Word)v[1] + 0x8000) & 0xffff0000);
}
inline void StoreStep(uint32_t* p, Word v) { *reinterpret_cast<WordAt*>(p) = v; }

inline Int LaneNumbers() {
  Int lanes;
  for (int i = 0; i < kLanes; ++i) lanes[i] = i;
  return lanes;
}

// One head: pointers are to its first element of a tensor, rows are 3C or C apart.
template <typename T>
struct Attention {
  // Floats are multiplied as they are, with AMX too: att and dscores have no parts yet.
  using P = std::conditional_t<sizeof(T) == sizeof(float), FloatPanels, HalfPanels>;
  using Form = typename P::Form;
  static constexpr int64_t kMR = P::kMR, kNR = P::kNR, kPer = Form::kPer;
  static constexpr int kNV = kNR / kLanes;
  static constexpr int64_t kBlock = 128 / kNR * kNR;  // keys or queries; 64 and 256 are slower
  static_assert(kMR % (P::kUnit * kPer) == 0 && kNR % kMR == 0);
  // Tile registers read rows of A as they lie in memory, so that dscores are A for dq without a
  // transpose, if keys 2 i and 2 i + 1 are in lane i of two vectors: the mixed order of a panel.
  static constexpr bool kTiles = P::kTiles;

  int64_t T_, C, HS;
  int64_t D = RoundUp(HS, kMR > kLanes ? kMR : kLanes);  // HS in whole panels
  int64_t steps = RoundUp(CeilDiv(HS, kPer), P::kUnit);  // of a panel along HS
  int64_t padded = RoundUp(T_, kNR);                     // T in whole panels
  int64_t pack = RoundUp(padded, kLanes) * D / kPer;     // words of a packed (T,HS)
  float scale = 1 / __builtin_sqrtf(static_cast<float>(HS));
  float unit = scale * Power<T>::kPerNat;

  // Steps along T of the panels of the block from t.
  int64_t Steps(int64_t t) const { return Min(kBlock, padded - t) / kPer; }

  // c (M,kNR) = or += a b over K; panels of a have a_steps steps.
  template <bool accumulate>
  static void Multiply(int64_t M, int64_t K, const uint32_t* a, int64_t a_steps,
                       const uint32_t* b, float* c) {
    for (int64_t i = 0; i < M; i += kMR)
      P::template Micro<accumulate>(K / kPer, a + i * a_steps, b, c + i * kNR, kNR,
                                    a + (i + kMR) * a_steps);
  }

  // Row r of out = scales * column r of the panel (D,kNR), whose order may be mixed.
  template <bool mixed>
  void StorePanel(const float* panel, int64_t rows, const Vec* scales, T* out,
                  int64_t stride) const {
    for (int x = 0; x < kNV; ++x)
      for (int64_t d = 0; d < HS; d += kLanes) {
        Word block[kLanes];
        for (int i = 0; i < kLanes; ++i)
          block[i] = (Word)(Load(panel + (d + i) * kNR + x * kLanes) * scales[x]);
        Transpose(block);
        for (int i = 0; i < kLanes; ++i) {
          const int64_t r = mixed ? i * kNV + x : x * kLanes + i;
          if (r < rows)
            StoreUpTo(out + r * stride + d, (Vec)block[i], Min<int64_t>(kLanes, HS - d));
        }
      }
  }

  // Queries from begin to end: a panel of them at a time against blocks of keys, as transposed
  // scores (keys, kNR), so that a query's maximum and sum are in a lane, and the weights are a
  // panel of B for out^T = v^T att^T.
  void Forward(int64_t begin, int64_t end, const T* qkv, T* out, float* lse) const {
    [[maybe_unused]] typename P::Scope scope;
    auto* k = Scratch<uint32_t>(Slot::kA, 2 * pack + RoundUp(kNR, kLanes) * D);
    uint32_t *v_d = k + pack, *q = v_d + pack;
    auto* scores = Scratch<float>(Slot::kC, (kBlock + D) * kNR);
    float* acc = scores + kBlock * kNR;
    const Operand<T> rows{qkv, 3 * C, 1}, columns{qkv, 1, 3 * C};
    for (int64_t packed = 0, i = begin; i < end; i += kNR) {
      for (; packed <= i; packed += kBlock) {
        const int64_t keys = Min(kBlock, T_ - packed);
        P::PackA(rows.From(packed, C), keys, HS, steps, k + packed * steps);
        P::PackA(columns.From(2 * C, packed), HS, keys, Steps(packed), v_d + packed * D / kPer);
      }
      Soon soon(HS * sizeof(T));
      const int64_t later = i + kBlock;
      for (int x = 0; x < 3; ++x)
        soon.Add(qkv + later * 3 * C + x * C, 3 * C, Min(kNR, T_ - later));
      soon.Add(out + i * C, C, Min(kNR, T_ - i));
      soon.Spread(CeilDiv(i + kNR, kMR));
      const int64_t queries = Min(kNR, T_ - i);
      P::PackB(rows.From(i, 0), queries, HS, steps, q);
      Vec max[kNV], sum[kNV], inverse[kNV];
      for (int x = 0; x < kNV; ++x) max[x] = Broadcast(-__builtin_inff()), sum[x] = Vec{};
      for (int64_t j = 0; j < i + queries; j += kBlock) {
        const int64_t keys = Min(kBlock, RoundUp(i + queries - j, kMR));
        for (int64_t r = 0; r < keys; r += kMR) {
          Multiply<false>(kMR, steps * kPer, k + (j + r) * steps, steps, q, scores + r * kNR);
          soon.Some();
        }
        HideLaterKeys(j - i, keys, scores);
        for (int x = 0; x < kNV; ++x) {
          Vec rescale = Softmax(keys, scores + x * kLanes, &max[x], &sum[x]);
          for (float* a = acc + x * kLanes; j > 0 && a < acc + D * kNR; a += kNR)
            Store(a, Load(a) * rescale);
        }
        (j > 0 ? Multiply<true> : Multiply<false>)(HS, keys, v_d + j * D / kPer, Steps(j),
                                                   reinterpret_cast<uint32_t*>(scores), acc);
      }
      for (int x = 0; x < kNV; ++x) inverse[x] = 1 / sum[x];
      StorePanel<false>(acc, queries, inverse, out + i * C, C);
      for (int64_t t = 0; t < queries; ++t)
        lse[i + t] = max[t / kLanes][t % kLanes] * scale +
                     __builtin_logf(sum[t / kLanes][t % kLanes]);
    }
  }

  // Scores of keys that come after their query, the first key being `ahead` of the first query.
  static void HideLaterKeys(int64_t ahead, int64_t keys, float* scores) {
    for (int64_t r = Max<int64_t>(0, -ahead); r < keys; ++r)
      for (int x = 0; x < kNV; ++x) {
        float* s = scores + r * kNR + x * kLanes;
        Int query = LaneNumbers() + x * kLanes;
        Store(s, query < static_cast<int32_t>(ahead + r) ? Broadcast(-__builtin_inff()) : Load(s));
      }
  }

  // A vector of queries' scores become weights relative to the maximum, in place, as steps of B.
  // Updates max and sum; returns what earlier sums are to be multiplied by.
  Vec Softmax(int64_t keys, float* scores, Vec* max, Vec* sum) const {
    Vec m[4] = {*max, *max, *max, *max};
    for (int64_t r = 0; r < keys; r += 4)
      for (int e = 0; e < 4; ++e) m[e] = MaxOf(m[e], Load(scores + (r + e) * kNR));
    const Vec largest = MaxOf(MaxOf(m[0], m[1]), MaxOf(m[2], m[3])), minus = largest * -unit;
    const Vec rescale = Exp((*max - largest) * scale);  // 1 where the maximum stays
    Vec total{}, weights[kPer];
    for (int64_t r = 0; r < keys; r += kPer) {
      for (int e = 0; e < kPer; ++e) {
        weights[e] = Power<T>::Of(Load(scores + (r + e) * kNR) * unit + minus);
        total += weights[e];
      }
      StoreStep(reinterpret_cast<uint32_t*>(scores) + r / kPer * kNR, StepOf(Form{}, weights));
    }
    *max = largest;
    *sum = *sum * rescale + total;
    return rescale;
  }

  // What backward keeps: packed operands along HS, and (_d) along T; of all queries, and of a block
  // of keys; and sums.
  struct Buffers {
    uint32_t *q, *q_d, *dout, *dout_d, *k, *k_d, *v;
    uint32_t *att, *dscores, *by_query, *turned;
    float *tile, *dq, *dk, *dv, *lse, *row_sum;
  };
  struct Tensors {
    const T* out;
    const float* lse;
    const T *dout, *qkv;
    T* dqkv;
  };

  Buffers Allocate() const {
    Buffers b;
    const int64_t block = RoundUp(kBlock, kLanes) * D / kPer, panel = kBlock * kNR / kPer;
    b.q = Scratch<uint32_t>(Slot::kA, 4 * pack + 3 * block + 3 * panel + kBlock * kBlock / kPer);
    b.q_d = b.q + pack, b.dout = b.q_d + pack, b.dout_d = b.dout + pack, b.k = b.dout_d + pack;
    b.k_d = b.k + block, b.v = b.k_d + block, b.att = b.v + block, b.dscores = b.att + panel;
    b.by_query = b.dscores + panel, b.turned = b.by_query + panel;
    b.tile = Scratch<float>(Slot::kC, 2 * kMR * kNR + (padded + 2 * kBlock) * D + 2 * padded);
    b.dk = b.tile + 2 * kMR * kNR, b.dv = b.dk + kBlock * D, b.dq = b.dv + kBlock * D;
    b.lse = b.dq + padded * D, b.row_sum = b.lse + padded;
    return b;
  }

  // The gradients of keys from begin to end (dk and dv), of queries from begin to end (dq), or, if
  // these are all, both; for each block of keys, a block of queries at a time. A block is at begin.
  void Backward(int64_t begin, int64_t end, bool keys, bool queries, const Tensors& t) const {
    [[maybe_unused]] typename P::Scope scope;
    const Buffers b = Allocate();
    int64_t packed = begin;
    for (int64_t j0 = keys ? begin : 0; j0 < end; j0 += kBlock) {
      PackKeys(j0, t, b);
      for (int64_t i0 = Max(j0, begin); i0 < (keys ? T_ : end); i0 += kBlock) {
        if (i0 == packed) PackQueries(i0, t, b), packed += kBlock;
        Soon soon = SoonAfter(j0, i0, packed, t);
        AddBlocks(j0, i0, keys, queries, b, &soon);
      }
      // Later keys do nothing for the queries of this block.
      Vec scales[kNV], ones[kNV];
      for (int x = 0; x < kNV; ++x) scales[x] = Broadcast(scale), ones[x] = Broadcast(1.f);
      for (int64_t j = j0; j < Min(T_, j0 + kBlock); j += kNR) {
        T* row = t.dqkv + j * 3 * C;
        const int64_t rows = Min(kNR, T_ - j);
        if (queries && j0 >= begin) StoreDq(b.dq + j * D, rows, scales, row);
        if (keys) {
          StorePanel<kTiles>(b.dk + (j - j0) * D, rows, scales, row + C, 3 * C);
          StorePanel<kTiles>(b.dv + (j - j0) * D, rows, ones, row + 2 * C, 3 * C);
        }
      }
    }
  }

  // What comes after these blocks: queries to be packed, or the next keys and where the gradients
  // of these go.
  Soon SoonAfter(int64_t j0, int64_t i0, int64_t packed, const Tensors& t) const {
    Soon soon(HS * sizeof(T));
    const int64_t next = j0 + kBlock, i = i0 + kBlock;
    if (i == packed) {
      soon.Add(t.qkv + i * 3 * C, 3 * C, Min(kBlock, T_ - i));
      soon.Add(t.dout + i * C, C, Min(kBlock, T_ - i));
      soon.Add(t.out + i * C, C, Min(kBlock, T_ - i));
    }
    if (i >= T_) {
      for (int x = 0; x < 3; ++x)
        soon.Add(t.dqkv + j0 * 3 * C + x * C, 3 * C, Min(kBlock, T_ - j0));
      for (int x = 1; x < 3; ++x)
        soon.Add(t.qkv + next * 3 * C + x * C, 3 * C, Min(kBlock, T_ - next));
    }
    soon.Spread(CeilDiv(kBlock, kNR) * CeilDiv(Min(kBlock, T_ - i0), kMR) / (i0 == j0 ? 2 : 1));
    return soon;
  }

  // Packs rows from t along HS; those that T does not have are 0.
  template <bool as_a>
  void PackT(const T* data, int64_t stride, int64_t t, uint32_t* out) const {
    const int64_t rows = Min(kBlock, T_ - t);
    if (rows % kNR)
      __builtin_memset(out + rows / kNR * kNR * steps, 0, kNR * steps * sizeof(uint32_t));
    data += t * stride;
    if constexpr (as_a) {
      P::PackA(Operand<T>{data, stride, 1}, rows, HS, steps, out);
    } else if constexpr (kTiles) {
      // the mixed order: row r of a panel is in lane r / kNV of vector r % kNV
      for (int64_t r = 0; r < rows; r += kNR)
        for (int64_t x = 0; x < Min<int64_t>(kNV, rows - r); ++x)
          P::PackB(Operand<T>{data + (r + x) * stride, kNV * stride, 1},
                   CeilDiv(Min(kNR, rows - r) - x, kNV), HS, steps, out + r * steps + x * kLanes);
    } else {
      P::PackB(Operand<T>{data, stride, 1}, rows, HS, steps, out);
    }
  }

  void PackKeys(int64_t j0, const Tensors& t, const Buffers& b) const {
    PackT<false>(t.qkv + C, 3 * C, j0, b.k);
    PackT<false>(t.qkv + 2 * C, 3 * C, j0, b.v);
    const Operand<T> k_d{t.qkv + C + j0 * 3 * C, 1, 3 * C};
    (kTiles ? P::template PackB<T> : P::template PackA<T>)(k_d, HS, Min(kBlock, T_ - j0),
                                                           Steps(j0), b.k_d);
  }

  void PackQueries(int64_t i0, const Tensors& t, const Buffers& b) const {
    const int64_t rows = Min(kBlock, T_ - i0), at = i0 * D / kPer;
    PackT<true>(t.qkv, 3 * C, i0, b.q + i0 * steps);
    PackT<true>(t.dout, C, i0, b.dout + i0 * steps);
    P::PackA(Operand<T>{t.qkv + i0 * 3 * C, 1, 3 * C}, HS, rows, Steps(i0), b.q_d + at);
    P::PackA(Operand<T>{t.dout + i0 * C, 1, C}, HS, rows, Steps(i0), b.dout_d + at);
    for (int64_t i = i0; i < Min(padded, i0 + kBlock); i += kLanes) {
      const int64_t some = Max<int64_t>(0, Min<int64_t>(kLanes, T_ - i));
      Store(b.row_sum + i, RowSums(some, t.dout + i * C, t.out + i * C));
      Store(b.lse + i, LoadUpTo(t.lse + i, some) * Power<T>::kPerNat);
    }
  }

  // The dot products of rows of x and y, summed in the order in which Micro sums: so dscores of the
  // first token, whose weight is 1, are 0. With tile registers, which have an order of their own,
  // nearly.
  Vec RowSums(int64_t rows, const T* x, const T* y) const {
    if constexpr (kTiles) {
      Vec sums[kLanes] = {};
      for (int64_t r = 0; r < rows; ++r)
        ForVectors(HS, [&](int64_t d, auto some) {
          sums[r] += LoadUpTo(x + r * C + d, some) * LoadUpTo(y + r * C + d, some);
        });
      return SumOfEach(sums);
    }
    Vec sum{};
    for (int64_t d = 0; d < HS; d += kLanes) {
      Word columns[2][kLanes] = {};
      for (int64_t r = 0; r < rows; ++r) {
        columns[0][r] = (Word)LoadUpTo(x + r * C + d, Min<int64_t>(kLanes, HS - d));
        columns[1][r] = (Word)LoadUpTo(y + r * C + d, Min<int64_t>(kLanes, HS - d));
      }
      Transpose(columns[0]);
      Transpose(columns[1]);
      for (int i = 0; i < kLanes; ++i) sum = (Vec)columns[0][i] * (Vec)columns[1][i] + sum;
    }
    return sum;
  }

  // Adds what the keys from j0 and the queries from i0 are to each other's gradients: dv^T and dk^T
  // of the keys, dq^T (or, with tile registers, dq) of the queries. A panel of keys at a time has
  // att and dscores (queries, kNR) as panels of B.
  void AddBlocks(int64_t j0, int64_t i0, bool keys, bool queries, const Buffers& b,
                 Soon* soon) const {
    const int64_t i_end = Min(i0 + kBlock, padded), j_end = Min(j0 + kBlock, padded);
    for (int64_t j = j0; j < j_end; j += kNR) {
      const int64_t i = Max(i0, j), rows = i_end - i, key = (j - j0) * steps;
      for (int64_t r = 0; r < rows; r += kMR) {
        const uint32_t *q = b.q + (i + r) * steps, *dout = b.dout + (i + r) * steps;
        P::template Micro<false>(steps, q, b.k + key, b.tile, kNR, dout);
        P::template Micro<false>(steps, dout, b.v + key, b.tile + kMR * kNR, kNR, q + kMR * steps);
        soon->Some();
        uint32_t* by_query = kTiles ? b.turned + ((i + r - i0) * kBlock + (j - j0) * kMR) / kPer
                                    : b.by_query + r * kNR / kPer;
        Differentiate(i + r, j, b, r / kPer * kNR, by_query);
      }
      if (keys) {
        const int64_t from = (i0 * D + (i - i0) * kMR) / kPer;
        auto multiply = i0 == j0 ? Multiply<false> : Multiply<true>;
        multiply(HS, rows, b.dout_d + from, Steps(i0), b.att, b.dv + (j - j0) * D);
        multiply(HS, rows, b.q_d + from, Steps(i0), b.dscores, b.dk + (j - j0) * D);
      }
      uint32_t* turned = b.turned + ((i - i0) * kBlock + (j - j0) * kNR) / kPer;
      if constexpr (kPer == 1) {
        if (queries) Turn(reinterpret_cast<const float*>(b.dscores), rows, turned);
      } else if constexpr (!kTiles) {
        if (queries) Turn(reinterpret_cast<const BF16*>(b.by_query), rows, turned);
      }
    }
    if (!queries) return;
    auto multiply = j0 == 0 ? Multiply<false> : Multiply<true>;
    for (int64_t i = i0; i < i_end; i += kNR) {
      const int64_t seen = Min(j_end, i + kNR) - j0;
      const uint32_t* dscores = b.turned + (i - i0) * kBlock / kPer;
      if constexpr (kTiles) {
        for (int64_t d = 0; d < HS; d += kNR)
          multiply(kMR, seen, dscores, 0, b.k_d + d * Steps(j0), b.dq + i * D + d * kMR);
      } else {
        multiply(HS, seen, b.k_d, Steps(j0), dscores, b.dq + i * D);
      }
    }
  }

  // att and dscores of the tile of queries from i by keys from j, from their scores and datt.
  // Stores them as steps of B at `at`, and dscores, for dq, as rows: words of pairs of keys, which
  // the mixed order of tile registers has in two vectors.
  void Differentiate(int64_t i, int64_t j, const Buffers& b, int64_t at, uint32_t* rows) const {
    const bool diagonal = i < j + kNR;
    for (int64_t r = 0; r < kMR; r += kPer) {
      Vec att[kNV][kPer], dscores[kNV][kPer];
      for (int x = 0; x < kNV; ++x) {
        for (int e = 0; e < kPer; ++e) {
          const float* s = b.tile + (r + e) * kNR + x * kLanes;
          Vec score = Load(s) * unit - b.lse[i + r + e];
          if (diagonal) {
            Int key = kTiles ? LaneNumbers() * kNV + x : LaneNumbers() + x * kLanes;
            const Int last = Int{} + static_cast<int32_t>(i + r + e - j);
            score = key > last ? Broadcast(-__builtin_inff()) : score;
          }
          att[x][e] = Power<T>::Of(score);
          dscores[x][e] = att[x][e] * (Load(s + kMR * kNR) - b.row_sum[i + r + e]);
          if constexpr (kPer > 1 && !kTiles)
            Store(reinterpret_cast<BF16*>(rows) + (r + e) * kNR + x * kLanes, dscores[x][e]);
        }
        StoreStep(b.att + at + r / kPer * kNR + x * kLanes, StepOf(Form{}, att[x]));
        StoreStep(b.dscores + at + r / kPer * kNR + x * kLanes, StepOf(Form{}, dscores[x]));
      }
      if constexpr (kTiles)
        for (int e = 0; e < kPer; ++e) {
          Vec pair[kNV] = {dscores[0][e], dscores[1][e]};
          StoreStep(rows + (r + e) * kLanes, StepOf(Form{}, pair));
        }
    }
  }

  // dscores of a panel of keys, in rows, as steps of B for dq^T = k^T dscores^T: a square for each
  // panel of queries. K is in whole blocks, for others are copied; what is read too much, of the
  // buffer behind, is in steps that are not written.
  template <typename Element>
  static void Turn(const Element* dscores, int64_t rows, uint32_t* out) {
    constexpr int64_t kK = RoundUp(kNR, kLanes * kPer);
    for (int64_t r = 0; r < rows; r += kNR)
      P::PackB(Operand<Element>{dscores + r * kNR, kNR, 1}, kNR, kK, kNR / kPer,
               out + r * kBlock / kPer);
  }

  // dq of a panel of queries.
  void StoreDq(const float* dq, int64_t rows, const Vec* scales, T* out) const {
    if constexpr (!kTiles) {
      StorePanel<false>(dq, rows, scales, out, 3 * C);
    } else {
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t d = 0; d < HS; d += kLanes) {
          Vec v = Load(dq + d / kNR * kMR * kNR + r * kNR + d % kNR) * scales[0];
          StoreUpTo(out + r * 3 * C + d, v, Min<int64_t>(kLanes, HS - d));
        }
    }
  }
};

// The first query or key of a part of T, so that each has as many pairs of them.
inline int64_t Cut(int64_t T_, int64_t part, int64_t parts, int64_t unit) {
  if (part == parts) return T_;
  float share = static_cast<float>(part) / static_cast<float>(parts);
  return static_cast<int64_t>(static_cast<float>(T_) * __builtin_sqrtf(share)) / unit * unit;
}

// qkv (B,T,3C), out (B,T,C), lse (B,NH,T)
template <typename T>
void AttentionForward(Threads& threads, int64_t B, int64_t T_, int64_t NH, int64_t HS, const T* qkv,
                      T* out, float* lse) {
  const Attention<T> attention{T_, NH * HS, HS};
  const int64_t C = NH * HS, heads = B * NH;
  const int64_t parts = CeilDiv(2 * threads.count(), Max<int64_t>(heads, 1));
  ParallelFor(threads, heads * parts, [&](int64_t task) {
    const int64_t head = task / parts, part = task % parts;
    const int64_t row = head / NH * T_, column = head % NH * HS;
    attention.Forward(Cut(T_, part, parts, attention.kNR), Cut(T_, part + 1, parts, attention.kNR),
                      qkv + row * 3 * C + column, out + row * C + column, lse + head * T_);
  });
}

// out, lse, dout (B,T,C) and qkv as in forward, dqkv (B,T,3C)
template <typename T>
void AttentionBackward(Threads& threads, int64_t B, int64_t T_, int64_t NH, int64_t HS,
                       const T* out, const float* lse, const T* dout, const T* qkv, T* dqkv) {
  const Attention<T> attention{T_, NH * HS, HS};
  const int64_t C = NH * HS, heads = B * NH;
  // With threads to spare, a block of keys or of queries is a task: half as much work again.
  const int64_t blocks = threads.count() >= 2 * heads ? CeilDiv(T_, attention.kBlock) : 0;
  const int64_t parts = Max<int64_t>(1, 2 * blocks);
  ParallelFor(threads, heads * parts, [&](int64_t task) {
    const int64_t head = task / parts, part = task % parts;
    const int64_t row = head / NH * T_, column = head % NH * HS;
    const int64_t begin = part / 2 * attention.kBlock;
    const int64_t end = blocks == 0 ? T_ : Min(T_, begin + attention.kBlock);
    attention.Backward(begin, end, /*keys=*/blocks == 0 || part % 2 == 0,
                       /*queries=*/blocks == 0 || part % 2 == 1,
                       {out + row * C + column, lse + head * T_, dout + row * C + column,
                        qkv + row * 3 * C + column, dqkv + row * 3 * C + column});
  });
}

}  // namespace llmc::LLMC_ISA
