// The instructions that came with sm_90 as functions: barriers in shared memory, copies of tiles by
// the copy engine (TMA), and products by a warpgroup, four warps (wgmma). emulator/hopper.h has
// what each of them does on the host. A kernel that uses them has a body for sm_90a only; see
// LLMC_HOPPER.
//
// Tiles in shared memory have rows of 64 numbers of 16 bits, 128 bytes, start at a multiple of 1024
// and are in the "128 byte swizzle": of an address bits 4..6 are xored with bits 7..9. The engine
// writes and reads them so, and the products take them so, rows or columns first.
//
// An accumulator of 64 rows and kN columns is float d[kN / 2] in each thread: thread t of the
// warpgroup has with g = t % 32 / 4 and i = 0..3, in d[4 n + i],
//   row t / 32 * 16 + g + i / 2 * 8, column 8 n + t % 4 * 2 + i % 2;
// a left operand in registers, 64 rows and 16 columns, is laid out as the pairs of an accumulator.
#pragma once

#include "cuda/ptx.cuh"

// Where a kernel's body is compiled.
#if defined(LLMC_EMULATED) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define LLMC_HOPPER 1
#else
#define LLMC_HOPPER 0
#endif

namespace llmc::cuda::ptx {

constexpr int kWarpgroup = 128;
constexpr int kSwizzleRow = 128;  // bytes

// The number of this thread's warpgroup, which the compiler sees is the same for the whole warp.
__device__ inline int Warpgroup() { return __shfl_sync(kAllLanes, threadIdx.x / kWarpgroup, 0); }

// The byte of a tile at which byte `column` of a row is.
__device__ inline uint32_t Swizzled(uint32_t row, uint32_t column) {
  return row * kSwizzleRow + (column ^ (row % 8 * 16));
}

// A tile as an operand of a product, from a shared address on. Groups of 8 rows are 1024 bytes
// apart; that is the stride between them both where rows are what is summed over and where columns
// are, and an operand has no other.
__device__ inline uint64_t Operand(uint32_t address) {
  constexpr uint64_t kGroup = 8 * kSwizzleRow / 16, kSwizzle128 = 1;
  return (address & 0x3ffff) >> 4 | kGroup << 16 | kGroup << 32 | kSwizzle128 << 62;
}
// The next 16 of what is summed over: columns of a row, or 16 rows.
constexpr uint64_t kNextColumns = 16 * 2 / 16, kNextRows = 16 * kSwizzleRow / 16;

}  // namespace llmc::cuda::ptx

#ifdef LLMC_EMULATED
#include "emulator/hopper.h"
#else

#include <cuda.h>

namespace llmc::cuda::ptx {

// ---- Barriers in shared memory: a phase is over when all have arrived and all bytes that were
// ---- announced have come. The first phase has parity 0.

using Barrier = uint64_t;

__device__ inline void BarrierInit(Barrier* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(SharedAddress(barrier)),
               "r"(arrivals)
               : "memory");
}
// Lets the copy engine see barriers that this thread initialised.
__device__ inline void FenceBarrierInit() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ inline void BarrierArrive(Barrier* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(SharedAddress(barrier))
               : "memory");
}
// Arrives and announces bytes that the copy engine will write.
__device__ inline void BarrierArriveExpecting(Barrier* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(
                   SharedAddress(barrier)),
               "r"(bytes)
               : "memory");
}
// Until the phase of this parity is over; over is also the one before the first, of parity 1.
__device__ inline void BarrierWait(Barrier* barrier, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred over;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 over, [%0], %1;\n"
      "@over bra done;\n"
      "bra again;\n"
      "done:\n"
      "}" ::"r"(SharedAddress(barrier)),
      "r"(parity)
      : "memory");
}

// ---- Barriers of some of the block's threads; 0 is __syncthreads.

__device__ inline void NamedBarrierSync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ inline void NamedBarrierArrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- Registers a thread of this warpgroup may have from here on.

template <int kRegisters>
__device__ inline void FewerRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ inline void MoreRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// ---- The copy engine.

// Makes what this thread stored in shared memory visible to the copy engine and to products, for
// who comes after a barrier.
__device__ inline void FenceProxyAsync() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

using TensorMap = CUtensorMap;

// The driver's function that makes maps; the library is not linked to the driver.
struct MapEncoder {
  decltype(&cuTensorMapEncodeTiled) encode;
  Status status;  // why there is none
};

inline MapEncoder FindMapEncoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
  cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                                       cudaEnableDefault, &found);
#else
  cudaError_t error =
      cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found);
#endif
  if (error != cudaSuccess) return {nullptr, ToStatus(error)};
  if (found != cudaDriverEntryPointSuccess || !function)
    return {nullptr, {"the driver has no cuTensorMapEncodeTiled"}};
  return {reinterpret_cast<decltype(MapEncoder::encode)>(function), {}};
}

// A tensor of four dimensions of 16 bit numbers, the first of them contiguous, the strides of the
// others in bytes; it is copied in boxes of box[0] x .. x box[3] with box[0] = 64.
inline Status MakeTensorMap(TensorMap* map, const void* data, const uint64_t (&sizes)[4],
                            const uint64_t (&strides)[3], const uint32_t (&box)[4]) {
  static const MapEncoder encoder = FindMapEncoder();  // several maps a launch, one search
  if (!encoder.encode) return encoder.status;
  const uint32_t steps[4] = {1, 1, 1, 1};
  CUresult result = encoder.encode(
      map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 4, const_cast<void*>(data), sizes, strides, box, steps,
      CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return {result == CUDA_SUCCESS ? nullptr : "the driver refused a tensor map"};
}

// Brings a map closer to the copy engine.
__device__ inline void Prefetch(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// Starts to copy the box at (x,y,z,w) to a tile, whose bytes arrive at `barrier`; what is outside
// of the tensor is zeros, and counts.
__device__ inline void LoadBox(void* tile, const TensorMap& map, Barrier* barrier, int x, int y,
                               int z, int w) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(SharedAddress(tile)),
      "l"(&map), "r"(SharedAddress(barrier)), "r"(x), "r"(y), "r"(z), "r"(w)
      : "memory");
}
// Starts to copy a tile to the box at (x,y,z,w), without what is outside of the tensor.
__device__ inline void StoreBox(const TensorMap& map, const void* tile, int x, int y, int z,
                                int w) {
  asm volatile(
      "cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group "
      "[%0, {%2, %3, %4, %5}], [%1];" ::"l"(&map),
      "r"(SharedAddress(tile)), "r"(x), "r"(y), "r"(z), "r"(w)
      : "memory");
}
// Closes a group of this thread's stores; waits until all of its tiles may be written again.
__device__ inline void StoreCommit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
__device__ inline void StoreWait() {
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}

// sum[i] += what is the i-th of four, in global memory, aligned to 16 bytes.
__device__ inline void AtomicAdd4(float* sum, float x, float y, float z, float w) {
  asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(sum), "f"(x), "f"(y), "f"(z),
               "f"(w)
               : "memory");
}

// ---- Products. They are asynchronous: from ProductFence to ProductWait the registers and the
// ---- tiles of a product belong to it.

// Keeps the compiler from moving accesses to registers over this point.
template <int kSize>
__device__ inline void Pin(float (&registers)[kSize]) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}
template <int kSize>
__device__ inline void Pin(uint32_t (&registers)[kSize]) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) asm volatile("" : "+r"(registers[i])::"memory");
}
template <typename Registers, int kOuter, int kSize>
__device__ inline void Pin(Registers (&registers)[kOuter][kSize]) {
#pragma unroll
  for (int i = 0; i < kOuter; ++i) Pin(registers[i]);
}

// Before products that use these registers, if they were written since the last.
template <typename... Registers>
__device__ inline void ProductFence(Registers&... registers) {
  (Pin(registers), ...);
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
// Closes a group of products.
__device__ inline void ProductCommit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Has what x, which is not negative, is made of come before the next ProductWait, so that it is
// computed beside the products: ptxas moves waits up over all arithmetic, but not over a branch.
__device__ inline void BeforeWait(float x) {
  if (x < 0) __trap();
}
// Until at most the last kBut groups are under way; `registers`: those of what is done then, the
// operands that may be written again among them.
template <int kBut, typename... Registers>
__device__ inline void ProductWait(Registers&... registers) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kBut) : "memory");
  (Pin(registers), ...);
}

#define LLMC_F4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define LLMC_F16(d, i) LLMC_F4(d, i), LLMC_F4(d, i + 4), LLMC_F4(d, i + 8), LLMC_F4(d, i + 12)
#define LLMC_R64                                                                        \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "             \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
#define LLMC_R128                                                                       \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "             \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "    \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "    \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "

// d = a b (+ d, if `add`), with a and b in tiles. kColumnsA: a's columns are the rows of its tile;
// kRowsB: b's rows are the rows of its tile, otherwise its columns are.
template <typename T, bool kColumnsA, bool kRowsB>
__device__ inline void Product(float (&d)[32], uint64_t a, uint64_t b, bool add) {
#define LLMC_PRODUCT(type)                                                                \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %34, 0;\n"                           \
               "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " " LLMC_R64   \
               "%32, %33, add, 1, 1, %35, %36;\n}"                                        \
               : LLMC_F16(d, 0), LLMC_F16(d, 16)                                          \
               : "l"(a), "l"(b), "r"(int{add}), "n"(int{kColumnsA}), "n"(int{kRowsB}))
  if constexpr (std::is_same_v<T, bf16>)
    LLMC_PRODUCT("bf16");
  else
    LLMC_PRODUCT("f16");
#undef LLMC_PRODUCT
}
template <typename T, bool kColumnsA, bool kRowsB>
__device__ inline void Product(float (&d)[64], uint64_t a, uint64_t b, bool add) {
#define LLMC_PRODUCT(type)                                                                \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %66, 0;\n"                           \
               "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " " LLMC_R128 \
               "%64, %65, add, 1, 1, %67, %68;\n}"                                        \
               : LLMC_F16(d, 0), LLMC_F16(d, 16), LLMC_F16(d, 32), LLMC_F16(d, 48)        \
               : "l"(a), "l"(b), "r"(int{add}), "n"(int{kColumnsA}), "n"(int{kRowsB}))
  if constexpr (std::is_same_v<T, bf16>)
    LLMC_PRODUCT("bf16");
  else
    LLMC_PRODUCT("f16");
#undef LLMC_PRODUCT
}

// The same with a in registers.
template <typename T, bool kRowsB>
__device__ inline void Product(float (&d)[32], const uint32_t (&a)[4], uint64_t b, bool add) {
#define LLMC_PRODUCT(type)                                                                \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %37, 0;\n"                           \
               "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " " LLMC_R64   \
               "{%32, %33, %34, %35}, %36, add, 1, 1, %38;\n}"                            \
               : LLMC_F16(d, 0), LLMC_F16(d, 16)                                          \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int{add}),       \
                 "n"(int{kRowsB}))
  if constexpr (std::is_same_v<T, bf16>)
    LLMC_PRODUCT("bf16");
  else
    LLMC_PRODUCT("f16");
#undef LLMC_PRODUCT
}

#undef LLMC_F4
#undef LLMC_F16
#undef LLMC_R64
#undef LLMC_R128

}  // namespace llmc::cuda::ptx

#endif
