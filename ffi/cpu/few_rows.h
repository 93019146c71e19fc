// The linear layer's product inp weight^T, whatever the number of rows.
//
// With many rows it is Gemm. With few (a step of generation has one a text) the weights are read
// once from memory, which is all the time there is, and Gemm would write and read them again as
// panels. So here they are read as they lie, in the order in which they lie.
#pragma once

#include <type_traits>

#include "cpu/gemm.h"

namespace llmc::LLMC_ISA {

// Up to as many rows; below the shortest prompt (models/lengths.py), so that a text's prompt and
// its steps go the same way whatever is computed beside them.
constexpr int64_t kFewRows = 16;
// Weights' rows and inp's rows that are multiplied at once: kLanes sums, one vector when each is
// added up.
constexpr int kWeightRows = 4, kInpRows = kLanes / kWeightRows;
// Weights' rows of a task: a multiple of kWeightRows and of kLanes.
constexpr int64_t kTaskRows = 64;

// How rows are multiplied: kStep elements of two rows give kLanes sums, to be added up.
struct ByFloats {
  static constexpr int kStep = kLanes;
  using Inp = float;
  using Elements = Vec;

  static Vec OfInp(const float* inp, int64_t some) { return LoadUpTo(inp, some); }
  // as Gemm<T> would use them
  template <typename T, typename W>
  static Vec OfWeight(const W* weight, int64_t some) {
    constexpr bool kPairs = PanelsOf<T>::Type::Form::kPer == 2;
    Vec v = LoadUpTo(weight, some);
    if constexpr (kPairs && sizeof(W) > sizeof(T)) v = Rounded<T>(v);
    return v;
  }
  static Vec Add(Vec sum, Vec w, Vec x) { return w * x + sum; }
};

#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)
// Pairs, as they lie in memory: vdpbf16ps adds both products to a float. (Where there is AMX, the
// instruction takes four times as long as a multiply-add of floats.)
struct ByPairs {
  static constexpr int kStep = 2 * kLanes;
  using Inp = BF16;
  using Elements = Word;

  static Word OfInp(const BF16* inp, int64_t some) { return OfWeight<BF16>(inp, some); }
  template <typename T, typename W>
  static Word OfWeight(const W* weight, int64_t some) {
    if (some == kStep) return WordsAlongK(Pairs{}, weight);
    W last[kStep] = {};
    __builtin_memcpy(last, weight, some * sizeof(W));
    return WordsAlongK(Pairs{}, last);
  }
  static Vec Add(Vec sum, Word w, Word x) {
    return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)w, (__m512bh)x);
  }
};
template <typename T>
using FewBy = std::conditional_t<std::is_same_v<T, BF16>, ByPairs, ByFloats>;
#else
template <typename T>
using FewBy = ByFloats;
#endif

// kR rows of `weight` by kN of `inp`, both C long: product n * kR + r. The weights behind them are
// fetched meanwhile: rows are too short for the processor to find out by itself.
// A product is summed in the same order whatever kN and kR are.
template <typename T, int kN, int kR, typename W>
Vec FewProducts(int64_t C, const typename FewBy<T>::Inp* inp, const W* weight) {
  using By = FewBy<T>;
  static_assert(kN * kR <= kLanes);
  Vec sum[kN][kR] = {};
  auto add = [&](int64_t c, int64_t some) {
    typename By::Elements w[kR];
#pragma GCC unroll 4
    for (int r = 0; r < kR; ++r) {
      w[r] = By::template OfWeight<T>(weight + r * C + c, some);
      for (int64_t e = 0; e < By::kStep; e += 64 / sizeof(W))
        __builtin_prefetch(weight + (kR + r) * C + c + e, 0, 2);
    }
#pragma GCC unroll 4
    for (int n = 0; n < kN; ++n) {
      auto x = By::OfInp(inp + n * C + c, some);
#pragma GCC unroll 4
      for (int r = 0; r < kR; ++r) sum[n][r] = By::Add(sum[n][r], w[r], x);
    }
  };
  int64_t c = 0;
  for (; c + By::kStep <= C; c += By::kStep) add(c, By::kStep);
  if (c < C) add(c, C - c);

  Vec sums[kLanes] = {};
#pragma GCC unroll 16
  for (int i = 0; i < kN * kR; ++i) sums[i] = sum[i / kR][i % kR];
  return SumOfEach(sums);
}

// out[n * kTaskRows + r] = the product of row n of inp (N,C) and row r of weight (kR,C).
template <typename T, int kR, typename W>
void FewRows(int64_t N, int64_t C, const typename FewBy<T>::Inp* inp, const W* weight,
             float* out) {
  auto store = [&](int64_t n, int rows, Vec v) {
    for (int i = 0; i < rows * kR; ++i) out[(n + i / kR) * kTaskRows + i % kR] = v[i];
  };
  int64_t n = 0;
  for (; n + kInpRows <= N; n += kInpRows)
    store(n, kInpRows, FewProducts<T, kInpRows, kR>(C, inp + n * C, weight));
  for (; n < N; ++n) store(n, 1, FewProducts<T, 1, kR>(C, inp + n * C, weight));
}

// inp as rows are multiplied; `room` is for another type than its own.
template <typename T>
const T* InpAs(const T* inp, int64_t /*n*/, float* /*room*/) {
  return inp;
}
template <typename To>
std::enable_if_t<std::is_same_v<To, float>, const float*> InpAs(const BF16* inp, int64_t n,
                                                                 float* room) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t some = Min<int64_t>(kLanes, n - i);
    StoreUpTo(room + i, LoadUpTo(inp + i, some), some);
  }
  return room;
}

// Calls epilogue(tile) for every tile of inp (N,C) weight (OC,C)^T.
template <typename T, typename W, typename Epilogue>
void Linear(Threads& threads, int64_t N, int64_t C, int64_t OC, const T* inp, const W* weight,
            const Epilogue& epilogue) {
  if (N > kFewRows)
    return Gemm<T>(threads, N, OC, C, Rows(inp, C), Rows(weight, C), epilogue);
  SharedScratch<float> room(N * C);
  const auto* x = InpAs<typename FewBy<T>::Inp>(inp, N * C, room.data());
  ParallelFor(threads, CeilDiv(OC, kTaskRows), [&](int64_t task) {
    const int64_t begin = task * kTaskRows, rows = Min(kTaskRows, OC - begin);
    auto* c = Scratch<float>(Slot::kC, N * kTaskRows);
    int64_t r = 0;
    for (; r + kWeightRows <= rows; r += kWeightRows)
      FewRows<T, kWeightRows>(N, C, x, weight + (begin + r) * C, c + r);
    for (; r < rows; ++r) FewRows<T, 1>(N, C, x, weight + (begin + r) * C, c + r);
    epilogue(Tile{0, begin, N, rows, c, kTaskRows});
    StreamFence();
  });
}

}  // namespace llmc::LLMC_ISA
