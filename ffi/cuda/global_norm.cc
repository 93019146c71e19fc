// Handler of global_norm: see global_norm.cu.
#include <vector>

#include "cuda/handler.h"

namespace llmc {
namespace {

ffi::Error GlobalNorm(StreamArgument stream, ffi::RemainingArgs args, F32Out norm,
                      F32Out partials) {
  Checker check("llmc_cuda_global_norm");
  check.Shape("partials", *partials, {cuda::kNormPartials});
  std::vector<const float*> arrays(args.size());
  std::vector<int64_t> sizes(args.size());
  for (size_t i = 0; i < args.size(); ++i) {
    auto buffer = args.get<F32>(i);
    if (!buffer.has_value()) {
      check.Fail("array " + std::to_string(i) + ": " + buffer.error().message());
      break;
    }
    arrays[i] = buffer->typed_data();
    sizes[i] = buffer->element_count();
  }
  return Run(check, [&] {
    return cuda::GlobalNorm(ToStream(stream), static_cast<int>(args.size()), arrays.data(),
                            sizes.data(), Out(partials), Out(norm));
  });
}

}  // namespace

LLMC_CUDA_HANDLER(llmc_cuda_global_norm, GlobalNorm,
                  BindStream()
                      .RemainingArgs()  // any number of arrays
                      .Ret<F32>()       // norm ()
                      .Ret<F32>());     // partials (kNormPartials): scratch

}  // namespace llmc
