// That the emulator does what a GPU does, and finds what it is there to find: each kernel here with
// a mistake must be caught.
#include "cuda/ptx.cuh"
#include "tests/cuda_harness.h"

namespace llmc::cuda::test {
namespace {

// What the emulator says of `kernel` on 64 threads in the order `schedule`; "" if nothing.
template <typename... Params, typename... Args>
std::string Complaint(unsigned schedule, void (*kernel)(Params...), const Args&... args) {
  emulator::SetSchedule(schedule);
  std::string complaint;
  try {
    Launch(Launchable(kernel), 1, 64, 4096, nullptr, args...);
  } catch (const std::exception& error) {
    complaint = error.what();
  }
  emulator::SetSchedule(0);
  return complaint;
}

void ExpectComplaint(const std::string& complaint, const std::string& part) {
  if (complaint.find(part) == std::string::npos)
    Fail("emulator", "said '" + complaint + "', expected '... " + part + " ...'");
}

void SomeThreadsMissABarrier() {
  if (threadIdx.x < 32) __syncthreads();
}

void LanesOfAWarpDiverge() {
  float x = 1;
  uint32_t r[4];
  if (threadIdx.x % 2)
    __shfl_xor_sync(kAllLanes, x, 1);
  else
    ptx::LoadMatrix4(r, SharedMemory<char[4096]>());
}

void AnAddressIsNotInSharedMemory(const float* global) {
  uint32_t r[4];
  ptx::LoadMatrix4(r, global);
}

void ACopyIsNotAligned(const float* global) {
  ptx::CopyAsync16(&SharedMemory<float[1024]>()[4 * threadIdx.x], global + 1, true);
}

// Each thread writes a number that another reads; with_barrier: after a barrier.
void Exchange(float* out, bool with_barrier) {
  auto& room = SharedMemory<float[64]>();
  room[threadIdx.x] = threadIdx.x;
  if (with_barrier) __syncthreads();
  out[threadIdx.x] = room[63 - threadIdx.x];
}

void CopyAsyncExchange(const float* in, float* out, bool with_wait) {
  auto& room = SharedMemory<float[256]>();
  ptx::CopyAsync16(&room[4 * threadIdx.x], in + 4 * threadIdx.x, true);
  ptx::CopyAsyncCommit();
  if (with_wait) ptx::CopyAsyncWait<0>();
  out[threadIdx.x] = room[4 * threadIdx.x];
}

// Whether all 64 numbers of `out` are `want(i)`.
template <typename Want>
bool All(const Buffer<float>& out, const Want& want) {
  for (int i = 0; i < 64; ++i)
    if (out[i] != want(i)) return false;
  return true;
}

void TestMistakesAreFound() {
  std::mt19937 random(0);
  Buffer<float> in(256, random);
  for (unsigned schedule : {0u, 1u, 2u}) {
    ExpectComplaint(Complaint(schedule, SomeThreadsMissABarrier), "waits for a barrier");
    ExpectComplaint(Complaint(schedule, LanesOfAWarpDiverge), "do different things");
    ExpectComplaint(Complaint(schedule, AnAddressIsNotInSharedMemory, in.data()),
                    "not in shared memory");
    ExpectComplaint(Complaint(schedule, ACopyIsNotAligned, in.data()), "not aligned");
  }
}

void TestAMissingBarrierOrWaitGivesNaN() {
  std::mt19937 random(0);
  Buffer<float> in(256, random);
  for (bool right : {true, false}) {
    bool exchanges_right = true, copies_right = true;
    for (unsigned schedule : {0u, 1u, 2u}) {
      Buffer<float> exchanged(64), copied(64);
      ExpectComplaint(Complaint(schedule, Exchange, exchanged.data(), right), "");
      ExpectComplaint(Complaint(schedule, CopyAsyncExchange, in.data(), copied.data(), right), "");
      exchanges_right &= All(exchanged, [](int i) { return 63 - i; });
      copies_right &= All(copied, [&](int i) { return in[4 * i]; });
    }
    if (exchanges_right != right) Fail("emulator", "a barrier made no difference");
    if (copies_right != right) Fail("emulator", "waiting for a copy made no difference");
  }
}

// c = a b for matrices in shared memory, by one of the block's two warps.
void Multiply(const bf16* a, const bf16* b, float* c) {
  auto& room = SharedMemory<bf16[2][16 * 16]>();
  int lane = threadIdx.x % 32;
  for (int i = threadIdx.x; i < 256; i += 64) room[0][i] = a[i], room[1][i] = b[i];
  __syncthreads();
  if (threadIdx.x >= 32) return;
  uint32_t a_fragment[4], b_fragment[4];
  const int row = lane % 16, column = lane / 16 * 8;
  ptx::LoadMatrix4(a_fragment, &room[0][row * 16 + column]);
  ptx::LoadMatrix4Transposed(b_fragment, &room[1][row * 16 + column]);
  for (int half = 0; half < 2; ++half) {
    float sum[4] = {};
    ptx::Mma<bf16>(sum, a_fragment, b_fragment[2 * half], b_fragment[2 * half + 1]);
    for (int i = 0; i < 4; ++i)
      c[(lane / 4 + i / 2 * 8) * 16 + half * 8 + lane % 4 * 2 + i % 2] = sum[i];
  }
}

void TestMma() {
  std::mt19937 random(0);
  Buffer<bf16> a(256, random), b(256, random);
  std::vector<double> want(256);
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 16; ++j)
      for (int k = 0; k < 16; ++k) want[i * 16 + j] += a.Value(i * 16 + k) * b.Value(k * 16 + j);
  InEverySchedule("mma", [&] {
    Buffer<float> c(256);
    Expect("mma", Launch(Kernel<Multiply>, 1, 64, 4096, nullptr, a.data(), b.data(), c.data()));
    Expect("mma", c, want, 1e-5);
  });
}

// Rounding to 16 bits, and back, against the next numbers above and below.
template <typename T>
void TestRounding() {
  std::mt19937 random(0);
  for (int i = 0; i < 20000; ++i) {
    float x = std::ldexp(std::normal_distribution<float>()(random), int(random() % 40) - 30);
    T rounded = FromFloat<T>(x);
    T above = {static_cast<uint16_t>(rounded.bits + 1)};
    T below = {static_cast<uint16_t>(rounded.bits - 1)};
    float error = std::fabs(ToFloat(rounded) - x);
    if (error > std::fabs(ToFloat(above) - x) ||
        (rounded.bits & 0x7fff && error > std::fabs(ToFloat(below) - x)))
      return Fail("rounding", std::to_string(x) + " became " + std::to_string(ToFloat(rounded)));
  }
}

}  // namespace

void TestEmulator() {
  TestMistakesAreFound();
  TestAMissingBarrierOrWaitGivesNaN();
  TestMma();
  TestRounding<bf16>();
  TestRounding<f16>();
}

}  // namespace llmc::cuda::test
