// The implementations of attention that attention.cu chooses from. Each takes what kernels.h says
// of AttentionForward and AttentionBackward, except for what is said here.
#pragma once

#include "cuda/gpu.cuh"

namespace llmc::cuda {

// attention_plain.cu: float32.
Status AttentionForwardPlain(Stream stream, AttentionSizes sizes, const float* qkv, float* out,
                             float* lse);
Status AttentionBackwardPlain(Stream stream, AttentionSizes sizes, const float* out,
                              const float* lse, const float* dout, const float* qkv, float* dqkv,
                              float* delta);

// attention_mma_*.cu: bfloat16 and float16, HS 64 and 128.
Status AttentionForwardMma(Stream stream, Type type, AttentionSizes sizes, const void* qkv,
                           void* out, float* lse);
Status AttentionBackwardMma(Stream stream, Type type, AttentionSizes sizes, bool deterministic,
                            const void* out, const float* lse, const void* dout, const void* qkv,
                            void* dqkv, float* delta, float* dq_sum);

// attention_hopper_*.cu: the same on sm_90; backward HS 64 only and not deterministic.
Status AttentionForwardHopper(Stream stream, Type type, AttentionSizes sizes, const void* qkv,
                              void* out, float* lse);
Status AttentionBackwardHopper(Stream stream, Type type, AttentionSizes sizes, const void* out,
                               const float* lse, const void* dout, const void* qkv, void* dqkv,
                               float* delta, float* dq_sum);

// Gives run a type and a head size as constants: run(T{}, std::integral_constant<int, HS>{}).
template <typename Run>
Status ForTypeAndHeadSize(Type type, int64_t HS, const Run& run) {
  using std::integral_constant;
  if (type == Type::kBF16 && HS == 64) return run(bf16{}, integral_constant<int, 64>{});
  if (type == Type::kBF16 && HS == 128) return run(bf16{}, integral_constant<int, 128>{});
  if (type == Type::kF16 && HS == 64) return run(f16{}, integral_constant<int, 64>{});
  if (type == Type::kF16 && HS == 128) return run(f16{}, integral_constant<int, 128>{});
  return {"no kernel of attention for this type and head size"};
}

}  // namespace llmc::cuda
