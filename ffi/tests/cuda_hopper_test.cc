// What only sm_90 has: that the models of its instructions fit together and find mistakes, and the
// kernels of attention for it.
#include "cuda/attention.cuh"
#include "cuda/hopper.cuh"
#include "tests/cuda_attention_reference.h"
#include "tests/cuda_harness.h"

namespace llmc::cuda::test {
namespace {

constexpr int kThreads = 2 * ptx::kWarpgroup;  // one that brings and one that computes

struct alignas(1024) Room {
  bf16 a[64 * 64], b[128 * 64];
  ptx::Barrier full;
};

enum Mistake {
  kNone,
  kNoBarrier,
  kNoProductWait,
  kNoFence,
  kNoInitFence,
  kNoProxyFence,
  kEarlyOverwrite,
  kNoStoreWait
};

// Stores what is there again, a number of 4 bytes a thread, for products and the copy engine.
void StoreAgain(const void* tile, Mistake mistake) {
  uint32_t both;
  std::memcpy(&both, static_cast<const char*>(tile) + 4 * threadIdx.x, 4);
  ptx::StoreShared(ptx::SharedAddress(tile) + 4 * threadIdx.x, both);
  if (mistake != kNoProxyFence) ptx::FenceProxyAsync();
}

// c = a b, 64 x N x 64; columns_a and rows_b: see ptx::Product.
template <bool kColumnsA, bool kRowsB, bool kRegistersA>
void Multiply(ptx::TensorMap a, ptx::TensorMap b, float* c, Mistake mistake) {
  constexpr int kN = kRowsB ? 64 : 128;
  auto& room = SharedMemory<Room>();
  if (threadIdx.x == 0) ptx::BarrierInit(&room.full, 1);
  if (mistake != kNoInitFence) ptx::FenceBarrierInit();
  __syncthreads();
  if (threadIdx.x >= ptx::kWarpgroup) {
    if (threadIdx.x != ptx::kWarpgroup) return;
    ptx::BarrierArriveExpecting(&room.full, sizeof(bf16) * 64 * (64 + kN));
    ptx::LoadBox(room.a, a, &room.full, 0, 0, 0, 0);
    ptx::LoadBox(room.b, b, &room.full, 0, 0, 0, 0);
    return;
  }
  if (mistake != kNoBarrier) ptx::BarrierWait(&room.full, 0);
  StoreAgain(room.b, mistake);
  ptx::NamedBarrierSync(1, ptx::kWarpgroup);
  float d[kN / 2];
  uint32_t fragment[4][4];
  int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, pair = threadIdx.x % 4 * 2;
  for (int i = 0; i < 16; ++i) {
    uint32_t at = ptx::Swizzled(row + i % 2 * 8, 2 * (i / 4 * 16 + i % 4 / 2 * 8 + pair));
    std::memcpy(&fragment[i / 4][i % 4], reinterpret_cast<char*>(room.a) + at, 4);
  }
  if (mistake != kNoFence) ptx::ProductFence(d, fragment);
  uint64_t left = ptx::Operand(ptx::SharedAddress(room.a));
  uint64_t right = ptx::Operand(ptx::SharedAddress(room.b));
  for (int i = 0; i < 4; ++i) {
    uint64_t b_part = right + i * (kRowsB ? ptx::kNextRows : ptx::kNextColumns);
    if constexpr (kRegistersA)
      ptx::Product<bf16, kRowsB>(d, fragment[i], b_part, i > 0);
    else
      ptx::Product<bf16, kColumnsA, kRowsB>(
          d, left + i * (kColumnsA ? ptx::kNextRows : ptx::kNextColumns), b_part, i > 0);
  }
  ptx::ProductCommit();
  if (mistake == kEarlyOverwrite) {
    for (int i = threadIdx.x; i < 64 * 64; i += ptx::kWarpgroup) room.b[i] = bf16{0};
    for (auto& registers : fragment)
      for (uint32_t& both : registers) both = 0;
  }
  if (mistake != kNoProductWait) ptx::ProductWait<0>(d);
  for (int i = 0; i < kN / 2; ++i)
    c[(row + i % 4 / 2 * 8) * kN + i / 4 * 8 + pair + i % 2] = d[i];
  // the registers must outlive the product, whatever the mistake
  ptx::ProductWait<0>(d);
}

ptx::TensorMap Map(const void* data, uint32_t rows) {
  ptx::TensorMap map;
  Expect("tensor map", ptx::MakeTensorMap(&map, data, {64, 1, rows, 1}, {128, 128, 128 * rows},
                                          {64, 1, rows, 1}));
  return map;
}

template <bool kColumnsA, bool kRowsB, bool kRegistersA = false>
struct MultiplyProblem {
  static constexpr int kN = kRowsB ? 64 : 128;
  Buffer<bf16> a, b;
  std::vector<double> want;

  explicit MultiplyProblem(std::mt19937& random)
      : a(64 * 64, random), b(kN * 64, random), want(64 * kN) {
    for (int i = 0; i < 64; ++i)
      for (int j = 0; j < kN; ++j)
        for (int k = 0; k < 64; ++k)
          want[i * kN + j] += a.Value(kColumnsA ? k * 64 + i : i * 64 + k) *
                              b.Value(kRowsB ? k * 64 + j : j * 64 + k);
  }

  // Whether the right result comes out, without a complaint.
  bool Right(Mistake mistake) {
    Buffer<float> c(64 * kN);
    try {
      Launch(Kernel<Multiply<kColumnsA, kRowsB, kRegistersA>>, 1, kThreads, sizeof(Room), nullptr,
             Map(a.data(), 64), Map(b.data(), kN), c.data(), mistake);
    } catch (const std::exception&) {
      return false;
    }
    for (int64_t i = 0; i < c.size(); ++i)
      if (!(std::fabs(c.Value(i) - want[i]) < 1e-3)) return false;
    return true;
  }

  void Test(const std::string& name) {
    for (unsigned schedule : {0u, 1u, 2u, 3u}) {
      emulator::SetSchedule(schedule);
      if (!Right(kNone)) Fail("wgmma", name + " is wrong");
    }
    for (Mistake mistake : {kNoBarrier, kNoProductWait, kNoFence, kNoInitFence, kNoProxyFence,
                            kEarlyOverwrite}) {
      bool always_right = true;
      for (unsigned schedule : {0u, 1u, 2u}) {
        emulator::SetSchedule(schedule);
        always_right &= Right(mistake);
      }
      if (always_right) Fail("wgmma", name + ": mistake " + std::to_string(mistake) + " not found");
    }
    emulator::SetSchedule(0);
  }
};

// Copies a box of 64 rows from row `first` of `in` to the same of `out`.
void CopyBox(ptx::TensorMap in, ptx::TensorMap out, int first, Mistake mistake) {
  auto& room = SharedMemory<Room>();
  if (threadIdx.x) return;
  ptx::BarrierInit(&room.full, 1);
  ptx::FenceBarrierInit();
  for (int parity : {0, 1}) {  // twice, for both parities
    ptx::BarrierArriveExpecting(&room.full, sizeof(room.a));
    ptx::LoadBox(room.a, in, &room.full, 0, 0, first, 0);
    ptx::BarrierWait(&room.full, parity);
  }
  StoreAgain(room.a, mistake);
  ptx::StoreBox(out, room.a, 0, 0, first, 0);
  ptx::StoreCommit();
  if (mistake != kNoStoreWait) ptx::StoreWait();
}

// Only rows that exist are written, and zeros stand for those that do not.
void TestCopies() {
  std::mt19937 random(0);
  Buffer<bf16> in(80 * 64, random);
  std::vector<double> want;
  for (int64_t i = 0; i < 16 * 64; ++i) want.push_back(in.Value(64 * 64 + i));
  auto map = [](const void* data) {
    ptx::TensorMap map;
    Expect("tensor map",
           ptx::MakeTensorMap(&map, data, {64, 1, 80, 1}, {128, 128, 80 * 128}, {64, 1, 64, 1}));
    return map;
  };
  InEverySchedule("copies", [&] {
    Buffer<bf16> out(80 * 64), rows(16 * 64);
    Launch(Kernel<CopyBox>, 1, 32, sizeof(Room), nullptr, map(in.data()), map(out.data()), 64,
           kNone);
    std::memcpy(rows.data(), &out[64 * 64], 16 * 64 * sizeof(bf16));
    Expect("copies", rows, want, 0);
    std::string said;
    try {
      Launch(Kernel<CopyBox>, 1, 32, sizeof(Room), nullptr, map(in.data()), map(out.data()), 64,
             kNoProxyFence);
    } catch (const std::exception& error) {
      said = error.what();
    }
    if (said.find("stored without a fence") == std::string::npos)
      Fail("copies", "said '" + said + "' of a store without a fence");
    if (emulator::Schedule() == 0) return;
    Buffer<bf16> nothing(80 * 64);
    Launch(Kernel<CopyBox>, 1, 32, sizeof(Room), nullptr, map(in.data()), map(nothing.data()), 64,
           kNoStoreWait);
    if (!std::isnan(nothing.Value(64 * 64))) Fail("copies", "waiting for a store does nothing");
  });
}

template <typename T>
void TestAttention(AttentionSizes sizes) {
  std::string name = "attention on sm_90, " + std::to_string(sizes.T) + " x " +
                     std::to_string(sizes.HS) + ", " + std::to_string(kEpsilon<T>);
  std::mt19937 random(0);
  int64_t rows = sizes.B * sizes.T, C = sizes.NH * sizes.HS;
  Buffer<T> qkv(rows * 3 * C, random), dout(rows * C, random);
  AttentionReference want(sizes, qkv, dout);
  double tolerance = 8 * kEpsilon<T>;
  InEverySchedule(name, [&] {
    Buffer<T> out(rows * C);
    Buffer<float> lse(rows * sizes.NH);
    Expect(name, AttentionForwardHopper(nullptr, kType<T>, sizes, qkv.data(), out.data(),
                                        lse.data()));
    Expect(name + " out", out, want.out, tolerance);
    Expect(name + " lse", lse, want.lse, 1e-4);
    if (sizes.HS != 64) return;
    Buffer<T> dqkv(rows * 3 * C);
    Buffer<float> delta(rows * sizes.NH), dq_sum(sizes.B * AttentionDqRows(sizes.T) * C);
    Expect(name, AttentionBackwardHopper(nullptr, kType<T>, sizes, out.data(), lse.data(),
                                         dout.data(), qkv.data(), dqkv.data(), delta.data(),
                                         dq_sum.data()));
    Expect(name + " dqkv", dqkv, want.dqkv, 4 * tolerance);
  });
}

}  // namespace

void TestHopper() {
  std::mt19937 random(0);
  MultiplyProblem<false, false>(random).Test("rows by rows");
  MultiplyProblem<true, true>(random).Test("columns by columns");
  MultiplyProblem<false, true, true>(random).Test("registers by columns");
  TestCopies();
  TestAttention<bf16>({1, 1, 2, 64});
  TestAttention<f16>({1, 64, 1, 64});
  TestAttention<bf16>({2, 63, 3, 64});
  TestAttention<f16>({3, 65, 2, 64});
  TestAttention<bf16>({2, 130, 1, 64});
  TestAttention<bf16>({1, 200, 2, 64});
  TestAttention<bf16>({1, 130, 1, 128});
  // Blocks with more tiles than there is room for at once, where one warpgroup has fewer of them.
  TestAttention<bf16>({2, 100, 6, 64});
  TestAttention<bf16>({2, 150, 6, 64});
  TestAttention<bf16>({1, 150, 6, 128});
}

}  // namespace llmc::cuda::test
