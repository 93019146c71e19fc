// The CUDA kernels, for those who call them: what a launcher takes, without CUDA's headers, so that
// handlers and tests are compiled by the host's compiler alone.
//
// A launcher puts its kernels on `stream` and returns at once; all pointers are to device memory.
// The letters of shapes are those of llmc_jax/ops/__init__.py; each .cu file has the maths.
#pragma once

#include <cstddef>
#include <cstdint>

namespace llmc::cuda {

using Stream = void*;  // a cudaStream_t

// What came of a launch; the messages are CUDA's and live for ever.
struct Status {
  const char* error = nullptr;
  bool ok() const { return !error; }
};

enum class Type { kF32, kBF16, kF16 };

// ---- global_norm.cu

// Rooms for partial sums that global_norm needs.
constexpr int kNormPartials = 512;

// norm[0] = sqrt(sum of the squares of all arrays); partials: room for kNormPartials numbers.
Status GlobalNorm(Stream stream, int count, const float* const* arrays, const int64_t* sizes,
                  float* partials, float* norm);

// ---- classifier.cu

// logits (N,Vp) of `type` become their gradient; targets (N), dlosses (N), losses (N).
Status ClassifierForward(Stream stream, Type type, int64_t N, int V, int Vp, const int* targets,
                         const float* dlosses, void* logits, float* losses);
Status ClassifierLosses(Stream stream, Type type, int64_t N, int V, int Vp, const int* targets,
                        const void* logits, float* losses);

}  // namespace llmc::cuda
