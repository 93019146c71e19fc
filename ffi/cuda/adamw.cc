// Handler of adamw: see adamw.cu.
#include <vector>

#include "cuda/handler.h"

namespace llmc {
namespace {

// Leaf i of the k-th of several lists of n arrays.
const float* Leaf(Checker& check, const ffi::RemainingArgs& args, size_t n, size_t k, size_t i,
                  int64_t* size) {
  auto buffer = args.get<F32>(k * n + i);
  if (!buffer.has_value()) {
    check.Fail("leaf " + std::to_string(i) + ": " + buffer.error().message());
    return nullptr;
  }
  int64_t count = buffer->element_count();
  if (k == 0) *size = count;
  check.Require(*size == count, "leaf " + std::to_string(i) + " has " + std::to_string(count) +
                                    " elements in one list and " + std::to_string(*size) +
                                    " in another, expected the same in all");
  return buffer->typed_data();
}

// The memory of result i, which XLA put in the place of `argument`.
float* InPlaceLeaf(Checker& check, ffi::RemainingRets& rets, size_t i, const float* argument) {
  auto result = rets.get<F32>(i);
  float* data = result.has_value() ? (*result)->typed_data() : nullptr;
  check.Require(data == argument, "result " + std::to_string(i) + " is not written in place");
  return data;
}

ffi::Error AdamW(StreamArgument stream, F32 lr, F32 scale, S32 step, ffi::RemainingArgs args,
                 ffi::RemainingRets rets, ffi::Span<const float> weight_decay, float beta1,
                 float beta2, float eps) {
  Checker check("llmc_cuda_adamw");
  size_t n = weight_decay.size();
  check.Shape("lr", lr, {});
  check.Shape("scale", scale, {});
  check.Shape("step", step, {});
  check.Require(args.size() == 4 * n && rets.size() == 3 * n,
                std::to_string(args.size()) + " arrays and " + std::to_string(n) +
                    " weight decays, expected params, grads, m and v of as many leaves");
  std::vector<cuda::AdamWLeaf> leaves(n);
  for (size_t i = 0; check.ok() && i < n; ++i) {
    cuda::AdamWLeaf& leaf = leaves[i];
    const float* param = Leaf(check, args, n, 0, i, &leaf.size);
    leaf.grad = Leaf(check, args, n, 1, i, &leaf.size);
    const float* m = Leaf(check, args, n, 2, i, &leaf.size);
    const float* v = Leaf(check, args, n, 3, i, &leaf.size);
    leaf.param = InPlaceLeaf(check, rets, i, param);
    leaf.m = InPlaceLeaf(check, rets, n + i, m);
    leaf.v = InPlaceLeaf(check, rets, 2 * n + i, v);
    leaf.weight_decay = weight_decay[i];
  }
  return Run(check, [&] {
    cuda::AdamWHyper hyper = {lr.typed_data(), scale.typed_data(), step.typed_data(), beta1,
                              beta2,           eps};
    return cuda::AdamW(ToStream(stream), static_cast<int>(n), leaves.data(), hyper);
  });
}

}  // namespace

LLMC_CUDA_HANDLER(llmc_cuda_adamw, AdamW,
                  BindStream()
                      .Arg<F32>()       // lr ()
                      .Arg<F32>()       // scale ()
                      .Arg<S32>()       // step ()
                      .RemainingArgs()  // params, grads, m, v: n arrays each
                      .RemainingRets()  // params, m, v: in place of the arguments
                      .Attr<ffi::Span<const float>>("weight_decay")
                      .Attr<float>("beta1")
                      .Attr<float>("beta2")
                      .Attr<float>("eps"));

}  // namespace llmc
