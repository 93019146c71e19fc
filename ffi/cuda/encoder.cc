// Handler of the encoder: see encoder.cu.
#include "cuda/handler.h"

namespace llmc {
namespace {

ffi::Error EncoderBackward(StreamArgument stream, Any dout, S32 tokens, S32 order, F32 dwte_before,
                           F32Out dwte, F32Out dwpe, F32Out partials) {
  Checker check("llmc_cuda_encoder_backward");
  check.FloatType("dout", dout);
  int64_t B = check.Size("dout", dout, 3, 0), T = check.Size("dout", dout, 3, 1);
  int64_t C = check.Size("dout", dout, 3, 2), Vp = check.Size("dwte", dwte_before, 2, 0);
  int64_t max_T = check.Size("dwpe", *dwpe, 2, 0);
  check.Shape("tokens", tokens, {B * T});
  check.Shape("order", order, {B * T});
  check.Shape("dwte", dwte_before, {Vp, C});
  check.Shape("dwpe", *dwpe, {max_T, C});
  check.Require(T <= max_T, "dout is " + ShapeString(dout.dimensions()) + " and dwpe " +
                                ShapeString(dwpe->dimensions()) + ", expected T <= maxT");
  check.Shape("partials", *partials,
              {(B * T + cuda::kEncoderWindow - 1) / cuda::kEncoderWindow, 2, C});
  check.Require(B * T < int64_t{1} << 30 && C < 1 << 20 && Vp < int64_t{1} << 31 &&
                    max_T < int64_t{1} << 30,
                "dout is " + ShapeString(dout.dimensions()) + ", too large");
  float* in_place = InPlace(check, "dwte", dwte, dwte_before);
  return Run(check, [&] {
    cuda::EncoderSizes sizes = {static_cast<int>(B), static_cast<int>(T), static_cast<int>(C),
                                static_cast<int>(Vp), static_cast<int>(max_T)};
    return cuda::EncoderBackward(ToStream(stream), TypeOf(dout), sizes, dout.untyped_data(),
                                 tokens.typed_data(), order.typed_data(), in_place, Out(dwpe),
                                 Out(partials));
  });
}

}  // namespace

LLMC_CUDA_HANDLER(llmc_cuda_encoder_backward, EncoderBackward,
                  BindStream()
                      .Arg<Any>()   // dout (B,T,C)
                      .Arg<S32>()   // tokens (B*T), sorted
                      .Arg<S32>()   // order (B*T): the rows of dout they belong to
                      .Arg<F32>()   // dwte (Vp,C) so far
                      .Ret<F32>()   // dwte, in its place
                      .Ret<F32>()   // dwpe (maxT,C)
                      .Ret<F32>());  // partials (windows,2,C): scratch

}  // namespace llmc
