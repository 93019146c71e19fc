// The last part of a sum over rows that blocks made parts of, in an order that does not change.
#include "cuda/elements.cuh"

namespace llmc::cuda {
namespace {

constexpr int kWarps = 32;

struct Shared {
  float sums[kWarps][kWarpSize];
};

// A block has 32 columns and a warp every 32nd row.
__global__ void __launch_bounds__(kWarps* kWarpSize)
    AddPartialsKernel(const float* partials, int rows, int columns, float* first, float* second,
                      int width) {
  Shared& shared = SharedMemory<Shared>();
  int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  int column = blockIdx.x * kWarpSize + lane;
  float sum = 0;
  if (column < columns) {
#pragma unroll 8
    for (int64_t row = warp; row < rows; row += kWarps) sum += partials[row * columns + column];
  }
  shared.sums[warp][lane] = sum;
  __syncthreads();
  if (warp > 0 || column >= columns) return;
  sum = 0;
  for (int i = 0; i < kWarps; ++i) sum += shared.sums[i][lane];
  if (column < width)
    first[column] = sum;
  else
    second[column - width] = sum;
}

}  // namespace

Status AddPartials(Stream stream, const float* partials, int rows, int width, float* first,
                   float* second) {
  int columns = second ? 2 * width : width;
  return Launch(Kernel<AddPartialsKernel>, static_cast<unsigned>(CeilDiv(columns, kWarpSize)),
                kWarps * kWarpSize, sizeof(Shared), stream, partials, rows, columns, first, second,
                width);
}

}  // namespace llmc::cuda
