// Handler of global_norm: see global_norm.cu.
#include <vector>

#include "cuda/handler.h"

namespace llmc {
namespace {

ffi::Error GlobalNorm(StreamArgument stream, ffi::RemainingArgs args, F32Out norm,
                      F32Out partials) {
  Checker check("llmc_cuda_global_norm");
  check.Shape("partials", *partials, {cuda::kNormPartials});
  std::vector<cuda::Gradient> grads(args.size());
  for (size_t i = 0; i < args.size(); ++i) {
    auto buffer = args.get<Any>(i);
    if (!buffer.has_value()) {
      check.Fail("array " + std::to_string(i) + ": " + buffer.error().message());
      break;
    }
    check.FloatType(("array " + std::to_string(i)).c_str(), *buffer);
    grads[i] = {buffer->untyped_data(), static_cast<int64_t>(buffer->element_count()),
                buffer->element_type() == ffi::BF16};
  }
  return Run(check, [&] {
    return cuda::GlobalNorm(ToStream(stream), static_cast<int>(grads.size()), grads.data(),
                            Out(partials), Out(norm));
  });
}

}  // namespace

LLMC_CUDA_HANDLER(llmc_cuda_global_norm, GlobalNorm,
                  BindStream()
                      .RemainingArgs()  // any number of arrays, float32 or bfloat16
                      .Ret<F32>()       // norm ()
                      .Ret<F32>());     // partials (kNormPartials): scratch

}  // namespace llmc
