// encoder (llmc_jax/ops/encoder.py): out[n] = wte[inp[n]] + wpe[n % T]; backward adds each row of
// dout to its token's row of dwte. A task takes some of the columns of all rows, so that no two
// tasks touch the same number and the order of the sums is the order of the tokens.
#pragma once

#include "cpu/tasks.h"
#include "cpu/vec.h"

namespace llmc::LLMC_ISA {

template <typename T, typename W>
void EncoderForward(Threads& threads, int64_t N, int64_t T_, int64_t C, const int32_t* inp,
                    const W* wte, const W* wpe, T* out) {
  constexpr int64_t kRows = 32;
  ParallelFor(threads, CeilDiv(N, kRows), [&](int64_t block) {
    for (int64_t n = block * kRows; n < Min(N, (block + 1) * kRows); ++n) {
      const W *token = wte + inp[n] * C, *position = wpe + n % T_ * C;
      // the sum of what T holds of each, as if the tables had been stored as T
      ForVectors(C, [&](int64_t i, auto some) {
        Vec sum = Rounded<T>(LoadUpTo(token + i, some)) + Rounded<T>(LoadUpTo(position + i, some));
        StoreUpTo(out + n * C + i, sum, some);
      });
    }
  });
}

template <typename T>
void EncoderBackward(Threads& threads, int64_t B, int64_t T_, int64_t C, int64_t max_T,
                     const T* dout, const int32_t* inp, float* dwte, float* dwpe) {
  constexpr int64_t kColumns = 128;
  ParallelFor(threads, CeilDiv(C, kColumns), [&](int64_t block) {
    const int64_t c = block * kColumns, columns = Min(kColumns, C - c);
    for (int64_t t = 0; t < max_T; ++t) {
      float* position = dwpe + t * C + c;
      for (int64_t i = 0; i < columns; ++i) position[i] = 0;
    }
    for (int64_t n = 0; n < B * T_; ++n) {
      const T* row = dout + n * C + c;
      float *token = dwte + inp[n] * C + c, *position = dwpe + n % T_ * C + c;
      ForVectors(columns, [&](int64_t i, auto some) {
        Vec d = LoadUpTo(row + i, some);
        StoreUpTo(token + i, LoadUpTo(token + i, some) + d, some);
        StoreUpTo(position + i, LoadUpTo(position + i, some) + d, some);
      });
    }
  });
}

}  // namespace llmc::LLMC_ISA
