// Handler of the GELU: see gelu.cu.
#include "cuda/handler.h"

namespace llmc {
namespace {

// The memory of the one optional result; null without it.
void* OptionalOut(Checker& check, ffi::RemainingRets& rets, const Any& like) {
  check.Require(rets.size() <= 1, std::to_string(rets.size()) + " further results, expected one");
  if (rets.size() != 1) return nullptr;
  auto out = rets.get<Any>(0);
  if (!out.has_value()) {
    check.Fail("out: " + out.error().message());
    return nullptr;
  }
  check.SameType("out", **out, like);
  check.Require((*out)->element_count() == like.element_count(),
                "out is " + ShapeString((*out)->dimensions()) + ", expected " +
                    ShapeString(like.dimensions()));
  return check.ok() ? Out(*out) : nullptr;
}

ffi::Error GeluBackward(StreamArgument stream, Any dout, Any inp, AnyOut dinp, F32Out dbias,
                        F32Out partials, ffi::RemainingRets rets) {
  Checker check("llmc_cuda_gelu_backward");
  check.FloatType("inp", inp);
  int64_t B = check.Size("inp", inp, 3, 0), T = check.Size("inp", inp, 3, 1);
  int64_t C = check.Size("inp", inp, 3, 2), blocks = check.Size("partials", *partials, 2, 0);
  check.Require(B * T < int64_t{1} << 31 && C < 1 << 22,
                "inp is " + ShapeString(inp.dimensions()) + ", too large");
  check.Shape("dout", dout, {B, T, C});
  check.SameType("dout", dout, inp);
  check.Shape("dinp", *dinp, {B, T, C});
  check.SameType("dinp", *dinp, inp);
  check.Shape("dbias", *dbias, {C});
  check.Shape("partials", *partials, {blocks, C});
  void* out = OptionalOut(check, rets, inp);
  return Run(check, [&] {
    return cuda::GeluBackward(ToStream(stream), TypeOf(inp), static_cast<int>(B * T),
                              static_cast<int>(C), dout.untyped_data(), inp.untyped_data(),
                              Out(dinp), out, Out(dbias), Out(partials),
                              static_cast<int>(blocks));
  });
}

}  // namespace

LLMC_CUDA_HANDLER(llmc_cuda_gelu_backward, GeluBackward,
                  BindStream()
                      .Arg<Any>()  // dout (B,T,C)
                      .Arg<Any>()  // inp (B,T,C)
                      .Ret<Any>()  // dinp (B,T,C)
                      .Ret<F32>()  // dbias (C)
                      .Ret<F32>()  // partials (blocks,C): scratch
                      .RemainingRets());  // none, or out (B,T,C)

}  // namespace llmc
