// What the kernels should compute, in double and in the plainest way, each number with a tolerance.
//
// How the tolerances are derived. An operation in float is wrong by at most u = 2^-24 of its
// result, by about 0.4 u as root mean square, and independently of the other operations. So n
// roundings of numbers of size s add up to 0.4 u s sqrt(n), and 3 u s sqrt(n) is seven standard
// deviations: enough for the 10^8 numbers compared here, and too little for one missing term.
//   A sum of n terms t, in any order: the partial sums are about |sum t| + sqrt(sum t^2) large,
// the first where the terms have one sign, the second where they have either. Hence
//     3 u sqrt(n + 1) (|sum t| + sqrt(sum t^2)),       1 for what is rounded in each term.
//   What is rounded to bfloat16 (v = 2^-8): numbers that the kernel stores are wrong by
// v |number| at most; where a kernel rounds the terms of a sum that nobody sees (the
// probabilities of attention, the gradient of the logits), 3 v sqrt(sum t^2), as above.
//   Errors of numbers that a result is computed from are carried to first order: a product's terms
// inherit |x| error(y) + |y| error(x), added up without hope that they cancel. They are of size u;
// wherever a kernel stores what it goes on with (the sum of a residual, mean, fch), the reference
// takes that instead, so that nothing of size v is inherited.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "cpu/types.h"

namespace llmc {

inline double Value(double x) { return x; }
inline double Value(float x) { return x; }
inline double Value(BF16 x) {
  uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline void Assign(double x, float* out) { *out = static_cast<float>(x); }
inline void Assign(double x, BF16* out) {  // to nearest, ties to even
  float value = static_cast<float>(x);
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  out->bits = static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

constexpr double kU = 1. / (1 << 24);

// What rounding to T may change beyond the rounding of a float, which the sums account for.
template <typename T>
constexpr double kRounding = 0;
template <>
inline constexpr double kRounding<BF16> = 1. / (1 << 8);

// The relative errors that e^x and 1 / x may have: what is rounded to bfloat16 in the next step
// need not be computed to more than 2^-13.
template <typename T>
constexpr double kExpError = 4 * kU;
template <>
inline constexpr double kExpError<BF16> = 1. / (1 << 13);
template <typename T>
constexpr double kReciprocalError = 3 * kU;
template <>
inline constexpr double kReciprocalError<BF16> = 1. / (1 << 14);

struct Want {
  double value = 0, tolerance = 0;
};

// How far the number may be from `want` as a kernel stores it; 1e-30, as e^x ends near 1e-38.
template <typename T>
double Tolerance(const Want& want) {
  return want.tolerance + kRounding<T> * (std::fabs(want.value) + want.tolerance) + 1e-30;
}

// The tolerance of a sum of n terms.
inline double SumError(int64_t n, double sum, double squares) {
  return 3 * kU * std::sqrt(n + 1.) * (std::fabs(sum) + std::sqrt(squares));
}

// Row-major.
struct Matrix {
  int64_t rows, columns;
  std::vector<Want> data;

  Matrix(int64_t rows, int64_t columns) : rows(rows), columns(columns), data(rows * columns) {}

  Want* operator[](int64_t row) { return data.data() + row * columns; }
  const Want* operator[](int64_t row) const { return data.data() + row * columns; }
};

// Rows of `columns` numbers that begin `stride` numbers apart.
template <typename T>
Matrix MatrixOf(const T* data, int64_t rows, int64_t columns, int64_t stride) {
  Matrix m(rows, columns);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) m[r][c].value = Value(data[r * stride + c]);
  return m;
}
template <typename T>
Matrix MatrixOf(const T* data, int64_t rows, int64_t columns) {
  return MatrixOf(data, rows, columns, columns);
}

inline Matrix Transposed(const Matrix& m) {
  Matrix t(m.columns, m.rows);
  for (int64_t r = 0; r < m.rows; ++r)
    for (int64_t c = 0; c < m.columns; ++c) t[c][r] = m[r][c];
  return t;
}

// The numbers as T holds them.
template <typename T>
Matrix RoundedTo(Matrix m) {
  for (Want& x : m.data) {
    T rounded;
    Assign(x.value, &rounded);
    x.value = Value(rounded);
  }
  return m;
}

// Anything between two results: those with float weights as they are, and rounded to bfloat16.
inline Matrix Between(Matrix a, const Matrix& b) {
  for (size_t i = 0; i < a.data.size(); ++i) {
    const Want x = a.data[i], y = b.data[i];
    a.data[i] = {(x.value + y.value) / 2,
                 std::fmax(x.tolerance, y.tolerance) + std::fabs(x.value - y.value) / 2};
  }
  return a;
}

// The sum of x y; `rounding` of the terms that nobody sees.
inline Want Dot(const Want* x, const Want* y, int64_t n, double rounding = 0) {
  double sum = 0, squares = 0, inherited = 0;
  for (int64_t k = 0; k < n; ++k) {
    double term = x[k].value * y[k].value;
    sum += term;
    squares += term * term;
    inherited += std::fabs(x[k].value) * y[k].tolerance + std::fabs(y[k].value) * x[k].tolerance;
  }
  return {sum, SumError(n, sum, squares) + 3 * rounding * std::sqrt(squares) + inherited};
}

// a (M,K) b (N,K)^T
inline Matrix Product(const Matrix& a, const Matrix& b, double rounding = 0) {
  Matrix product(a.rows, b.rows);
  for (int64_t i = 0; i < a.rows; ++i)
    for (int64_t j = 0; j < b.rows; ++j) product[i][j] = Dot(a[i], b[j], a.columns, rounding);
  return product;
}

// The sum of m's rows.
inline Matrix RowSum(const Matrix& m) {
  Matrix ones(1, m.rows);
  for (Want& one : ones.data) one.value = 1;
  return Product(ones, Transposed(m));
}

inline Want Plus(const Want& a, const Want& b) {
  return {a.value + b.value,
          a.tolerance + b.tolerance + 2 * kU * (std::fabs(a.value) + std::fabs(b.value))};
}

// inp (N,C) weight (OC,C)^T + bias (1,OC)
inline Matrix Linear(const Matrix& inp, const Matrix& weight, const Matrix& bias) {
  Matrix out = Product(inp, weight);
  for (int64_t n = 0; n < out.rows; ++n)
    for (int64_t oc = 0; oc < out.columns; ++oc) out[n][oc] = Plus(out[n][oc], bias[0][oc]);
  return out;
}

struct Statistics {
  Want mean, rstd;
};

// Of the C numbers x.
inline Statistics RowStatistics(const Want* x, int64_t C, double eps) {
  double sum = 0, squares = 0, variance = 0;
  for (int64_t c = 0; c < C; ++c) sum += x[c].value, squares += x[c].value * x[c].value;
  const double mean = sum / C, mean_error = SumError(C, sum, squares) / C + kU * std::fabs(mean);
  for (int64_t c = 0; c < C; ++c) variance += std::pow(x[c].value - mean, 2) / C;
  // the sum's terms have one sign, so both sizes in SumError are at most the sum; a mean that is
  // off by d adds d^2; and x^-1/2 halves a relative error
  const double rstd = 1 / std::sqrt(variance + eps);
  const double variance_error =
      6 * kU * std::sqrt(C + 1.) * variance + mean_error * mean_error + 2 * kU * eps;
  return {{mean, mean_error}, {rstd, rstd * (variance_error * rstd * rstd / 2 + 2 * kU)}};
}

// One number of layernorm's output: operations on numbers no larger than |norm weight| + |bias|.
inline Want LayerNorm(double x, double mean, double rstd, double weight, double bias) {
  double scaled = (x - mean) * rstd * weight;
  return {scaled + bias, 4 * kU * (std::fabs(scaled) + std::fabs(bias))};
}

struct LayerNormGradients {
  Matrix dinp, dweight, dbias;
};

inline LayerNormGradients LayerNormBackward(const Matrix& dout, const Matrix& inp,
                                            const Matrix& mean, const Matrix& rstd,
                                            const Matrix& weight) {
  const int64_t N = inp.rows, C = inp.columns;
  Matrix dinp(N, C), norm(N, C), dnorm(N, C), terms(N, C), ones(1, C);
  for (Want& one : ones.data) one.value = 1;
  for (int64_t n = 0; n < N; ++n)
    for (int64_t c = 0; c < C; ++c) {
      double x = (inp[n][c].value - mean[0][n].value) * rstd[0][n].value;
      double d = dout[n][c].value * weight[0][c].value;
      norm[n][c] = {x, 2 * kU * std::fabs(x)};
      dnorm[n][c] = {d, kU * std::fabs(d)};
      terms[n][c].value = dout[n][c].value * x;
    }
  for (int64_t n = 0; n < N; ++n) {
    const Want sum = Dot(dnorm[n], ones[0], C), dot = Dot(dnorm[n], norm[n], C);
    for (int64_t c = 0; c < C; ++c) {
      const Want d = dnorm[n][c], x = norm[n][c];
      const double scale = rstd[0][n].value, mean_term = sum.value / C;
      const double norm_term = x.value * dot.value / C;
      const double size = std::fabs(d.value) + std::fabs(mean_term) + std::fabs(norm_term);
      dinp[n][c] = {scale * (d.value - mean_term - norm_term),
                    scale * (sum.tolerance / C + std::fabs(x.value) * dot.tolerance / C +
                             4 * kU * size)};
    }
  }
  return {dinp, RowSum(terms), RowSum(dout)};
}

struct Gelu {
  Want out, slope;
};

// gelu(x) = x s, s = 1 / (1 + e^-a), a = 2 sqrt(2/pi) (x + 0.044715 x^3), and its derivative
// s + x s (1 - s) a'.
//
// The five operations and two rounded constants of `a` make it wrong by 6 u |a|, so e^-a by a
// factor of 1 +- (6 u |a| + kExpError), and s by that times 1 - s; 1 - s itself is rounded to u.
template <typename T>
Gelu GeluAt(double x) {
  const double scale = 2 * std::sqrt(2 / std::acos(-1.)), cubic = 0.044715;
  const double a = scale * (x + cubic * x * x * x), slope_a = scale * (1 + 3 * cubic * x * x);
  const double s = 1 / (1 + std::exp(-a)), rest = 1 / (1 + std::exp(a));
  const double s_error =
      s * (rest * (6 * kU * std::fabs(a) + kExpError<T>) + kReciprocalError<T>);
  const double second = x * s * rest * slope_a;
  return {{x * s, std::fabs(x) * (s_error + kU * s)},
          {s + second, s_error + std::fabs(x * slope_a) * (s_error + 2 * kU * s) +
                           5 * kU * std::fabs(second) + kU * std::fabs(s + second)}};
}

struct CrossEntropy {
  Matrix losses, dlogits;  // (1,N), (N,Vp)
};

// losses = logsumexp(logits[:V]) - logits[target] and their gradients times dlosses, of logits
// (N,Vp); rows with target < 0 are ignored.
//
// With x = logit - max: e^x is wrong by a factor of 1 +- u (|x| + 4), from rounding x and from
// e^x itself, and by the error of the logit. x may also be measured from the target's logit. The
// sum over the vocabulary is taken over 64 floats at most before it goes on in double, or in that
// many lanes. dlogits may be of another, less exact e^x.
template <typename T>
CrossEntropy CrossEntropyOf(const Matrix& logits, int64_t V, const int32_t* targets,
                            const float* dlosses, bool from_target = false) {
  const int64_t N = logits.rows;
  CrossEntropy want{Matrix(1, N), Matrix(N, logits.columns)};
  for (int64_t n = 0; n < N; ++n) {
    const Want* z = logits[n];
    if (targets[n] < 0) continue;
    double max = z[0].value, total = 0, total_error = 0;
    for (int64_t v = 0; v < V; ++v) max = std::fmax(max, z[v].value);
    const double from = from_target ? max - z[targets[n]].value : 0;
    auto relative = [&](int64_t v) {
      return z[v].tolerance + kU * (std::fabs(z[v].value - max) + from + 4);
    };
    for (int64_t v = 0; v < V; ++v) {
      total += std::exp(z[v].value - max);
      total_error += std::exp(z[v].value - max) * relative(v);
    }
    total_error = total_error / total + 6 * kU * std::sqrt(64 + 1.);  // relative from here on
    const Want& target = z[targets[n]];
    want.losses[0][n] = {std::log(total) + max - target.value,
                         total_error + target.tolerance +
                             2 * kU * (std::log(total) + std::fabs(max) + std::fabs(target.value))};
    if (!dlosses) continue;
    for (int64_t v = 0; v < V; ++v) {
      double p = std::exp(z[v].value - max) / total, onehot = v == targets[n];
      want.dlogits[n][v] = {(p - onehot) * dlosses[n],
                            std::fabs(dlosses[n]) *
                                (p * (relative(v) + kExpError<T> + total_error + 3 * kU) +
                                 onehot * kU)};
    }
  }
  return want;
}

struct ClassifierOutput {
  Matrix losses, dlnf, dwte;  // (1,N), (N,C), (Vp,C)
};

template <typename T>
ClassifierOutput Classifier(const Matrix& lnf, const Matrix& wte, int64_t V,
                              const int32_t* targets, const float* dlosses) {
  auto want = CrossEntropyOf<T>(Product(lnf, wte), V, targets, dlosses, /*from_target=*/true);
  return {want.losses, Product(want.dlogits, Transposed(wte), kRounding<T>),
          Product(Transposed(want.dlogits), Transposed(lnf), kRounding<T>)};
}

// Of one head: q, k, v (T,HS) to out (T,HS), lse (1,T).
struct AttentionOutput {
  Matrix out, lse;
};
struct AttentionGradients {
  Matrix dq, dk, dv;
};

// Scaled scores of the keys up to each query, (T,T).
inline Matrix Scores(const Matrix& q, const Matrix& k) {
  const double scale = 1 / std::sqrt(q.columns);
  Matrix scores = Product(q, k);
  for (Want& s : scores.data) {
    s.value *= scale;
    s.tolerance = s.tolerance * scale + 2 * kU * std::fabs(s.value);
  }
  return scores;
}

// The factor by which e^(score - lse) may be wrong: the exponent's three operations in whatever
// base, e^x itself, and the score's error. It may be made of several factors, block by block.
template <typename T>
double AttentionExpError(const Want& score, double lse) {
  return score.tolerance + 2 * kU * (std::fabs(score.value) + std::fabs(lse)) + 2 * kExpError<T>;
}

template <typename T>
AttentionOutput AttentionForward(const Matrix& q, const Matrix& k, const Matrix& v) {
  const int64_t steps = q.rows;
  Matrix att = Scores(q, k), lse(1, steps);
  for (int64_t t = 0; t < steps; ++t) {
    double max = att[t][0].value, total = 0, error = 0;
    for (int64_t s = 0; s <= t; ++s) max = std::fmax(max, att[t][s].value);
    for (int64_t s = 0; s <= t; ++s) total += std::exp(att[t][s].value - max);
    const double value = std::log(total) + max;
    for (int64_t s = 0; s < steps; ++s) {
      const double p = s <= t ? std::exp(att[t][s].value - value) : 0;
      const double factor = AttentionExpError<T>(att[t][s], value);
      att[t][s] = {p, p * factor};
      error += p * factor;
    }
    error += 6 * kU * std::sqrt(t + 2.);  // of the sum of e^x
    lse[0][t] = {value, error + 2 * kU * (std::fabs(value) + std::fabs(max))};
    for (int64_t s = 0; s <= t; ++s) att[t][s].tolerance += att[t][s].value * error;
  }
  return {Product(att, Transposed(v), kRounding<T>), lse};
}

// From forward's out and lse as they were stored, so these are exact.
template <typename T>
AttentionGradients AttentionBackward(const Matrix& out, const Matrix& lse, const Matrix& dout,
                                     const Matrix& q, const Matrix& k, const Matrix& v) {
  const int64_t steps = q.rows, HS = q.columns;
  const double scale = 1 / std::sqrt(HS);
  Matrix att = Scores(q, k), dscores = Product(dout, v);
  for (int64_t t = 0; t < steps; ++t) {
    const Want row_sum = Dot(dout[t], out[t], HS);
    for (int64_t s = 0; s < steps; ++s) {
      const double p = s <= t ? std::exp(att[t][s].value - lse[0][t].value) : 0;
      const double factor = AttentionExpError<T>(att[t][s], lse[0][t].value);
      const Want datt = Plus(dscores[t][s], {-row_sum.value, row_sum.tolerance});
      att[t][s] = {p, p * factor};
      dscores[t][s] = {p * datt.value * scale,
                       p * scale * (datt.tolerance + std::fabs(datt.value) * (factor + 3 * kU))};
    }
  }
  return {Product(dscores, Transposed(k), kRounding<T>),
          Product(Transposed(dscores), Transposed(q), kRounding<T>),
          Product(Transposed(att), Transposed(dout), kRounding<T>)};
}

// The moving average beta old + (1 - beta) new, new made with `operations`.
inline Want MovingAverage(double beta, double old, const Want& now, int operations) {
  double a = beta * old, b = (1 - beta) * now.value;
  return {a + b, 2 * kU * (std::fabs(a) + operations * std::fabs(b)) + (1 - beta) * now.tolerance};
}

inline Want Scaled(const Want& x, double factor) {
  return {factor * x.value, std::fabs(factor) * x.tolerance};
}
inline Want Squared(const Want& x) {
  return {x.value * x.value, (2 * std::fabs(x.value) + x.tolerance) * x.tolerance};
}

// param after the update with m and v.
inline Want AdamWParam(double param, double m, double v, double weight_decay,
                       const AdamWHyper& h) {
  double step = h.lr * (m * h.unbias1) / (std::sqrt(v * h.unbias2) + h.eps);
  double decay = static_cast<double>(h.lr) * weight_decay * param;
  double value = param - step - decay;
  double before = std::fabs(param) + 8 * std::fabs(step) + 4 * std::fabs(decay);
  return {value, kU * (2 * std::fabs(value) + before)};
}

}  // namespace llmc
