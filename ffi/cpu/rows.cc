#include "cpu/rows.h"

namespace llmc {

LLMC_CLONES float RowMax(const float* x, int64_t n) {
  float max = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : max)
  for (int64_t i = 0; i < n; ++i) max = std::max(max, x[i]);
  return max;
}

// Summed in chunks: over a vocabulary of 50,257 one float loses three digits.
LLMC_CLONES float RowSumExp(const float* x, float max, int64_t n) {
  constexpr int64_t kChunk = 1024;
  double total = 0;
  for (int64_t start = 0; start < n; start += kChunk) {
    int64_t end = std::min(n, start + kChunk);
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = start; i < end; ++i) sum += Exp(x[i] - max);
    total += sum;
  }
  return static_cast<float>(total);
}

LLMC_CLONES void RowExp(const float* x, float max, float scale, int64_t n, float* out) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = Exp(x[i] - max) * scale;
}

LLMC_CLONES void MatmulAdd(int64_t m, int64_t n, int64_t k, const float* a, int64_t a_row,
                           int64_t a_column, const float* b, int64_t ldb, float* c, int64_t ldc) {
  constexpr int64_t kRows = 4, kColumns = 32;  // of c, held in registers
  for (int64_t j = 0; j < n; j += kColumns) {
    int64_t columns = std::min(kColumns, n - j);
    for (int64_t i = 0; i < m; i += kRows) {
      int64_t rows = std::min(kRows, m - i);
      if (rows == kRows && columns == kColumns) {
        float sum[kRows][kColumns] = {};
        for (int64_t p = 0; p < k; ++p) {
          for (int64_t r = 0; r < kRows; ++r) {
            float factor = a[(i + r) * a_row + p * a_column];
#pragma omp simd
            for (int64_t s = 0; s < kColumns; ++s) sum[r][s] += factor * b[p * ldb + j + s];
          }
        }
        for (int64_t r = 0; r < kRows; ++r)
          for (int64_t s = 0; s < kColumns; ++s) c[(i + r) * ldc + j + s] += sum[r][s];
      } else {
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t p = 0; p < k; ++p) {
            float factor = a[(i + r) * a_row + p * a_column];
            for (int64_t s = 0; s < columns; ++s)
              c[(i + r) * ldc + j + s] += factor * b[p * ldb + j + s];
          }
      }
    }
  }
}

}  // namespace llmc
