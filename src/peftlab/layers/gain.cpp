// Numbers scaled by a gain each, and the norms that DoRA's gains are over; gain.py has their readable form.
//
//   scaled            c + gain ∘ (x - c)        c: a bias that is not scaled, or 0
//   scaled_gradient   from g, the gradient of that: gain ∘ g, and the gradient of the gain, Σ g ∘ (x - c) over all rows
//   squared_norms     ‖Wⱼ + s Bⱼ A‖² of each row j: ‖Wⱼ‖² + s Σₖ Bⱼₖ (2 Wⱼ·Aₖ + s Σₗ Bⱼₗ Aₗ·Aₖ)
//
// x, g and W are in bf16 or fp32, everything else and all sums in fp32. No sum depends on the number of threads.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "vectors.h"

namespace {

constexpr int64_t GRAIN = 32;    // rows a thread takes at least
constexpr int64_t BLOCK = 4;     // rows of W, and of A, whose products share what is loaded
constexpr int64_t COLUMNS = 64;  // of all rows, which a thread takes at least

typedef Rows<const float> Floats;

Floats floats_of(const at::Tensor& x, at::IntArrayRef sizes) {
  TORCH_CHECK(x.scalar_type() == at::kFloat && x.is_contiguous() && x.sizes() == sizes, "fp32, contiguous, ", sizes);
  return {x.const_data_ptr<float>(), sizes.back()};
}

template <typename T>
Rows<const T> rows_of(const at::Tensor& x) {
  return {x.const_data_ptr<T>(), x.stride(0)};
}

void check_rows(const at::Tensor& x) {
  TORCH_CHECK(x.dim() == 2 && x.stride(1) == 1 && x.size(1) % LANES == 0, "rows of a multiple of ", LANES, " numbers");
  TORCH_CHECK(x.scalar_type() == at::kBFloat16 || x.scalar_type() == at::kFloat, "in bf16 or fp32");
}

// `run` with a zero of the rows' type.
template <typename Run>
void for_type(const at::Tensor& x, const Run& run) {
  x.scalar_type() == at::kBFloat16 ? run(at::BFloat16(0)) : run(0.0f);
}

// -- gains ------------------------------------------------------------------------------------------

// The gains and biases of columns; no bias is 0.
struct Gains {
  const float *gain, *bias;
  Vector bias_at(int64_t j) const { return bias ? vector_at(bias + j) : Vector{}; }
};

Gains gains_of(const at::Tensor& gain, const std::optional<at::Tensor>& bias, int64_t width) {
  return {floats_of(gain, {width}).at, bias ? floats_of(*bias, {width}).at : nullptr};
}

at::Tensor scaled(const at::Tensor& x, const at::Tensor& gain, const std::optional<at::Tensor>& bias) {
  check_rows(x);
  const int64_t rows = x.size(0), width = x.size(1);
  const Gains of = gains_of(gain, bias, width);
  auto y = at::empty({rows, width}, x.options());
  for_type(x, [&](auto zero) {
    typedef decltype(zero) T;
    const auto from = rows_of<T>(x);
    const Rows<T> to{y.mutable_data_ptr<T>(), width};
    at::parallel_for(0, rows, GRAIN, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        for (int64_t j = 0; j < width; j += LANES) {
          const Vector c = of.bias_at(j);
          put(c + vector_at(of.gain + j) * (vector_at(from[row] + j) - c), to[row] + j);
        }
      }
    });
  });
  return y;
}

// All rows of some columns: their part of gain ∘ g, and of the sums over rows.
template <typename T>
void columns_gradient(Rows<const T> g, Rows<const T> x, Gains of, int64_t rows, int64_t begin, int64_t end, Rows<T> g_x,
                      float* sums) {
  std::fill(sums + begin, sums + end, 0.0f);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t j = begin; j < end; j += LANES) {
      const Vector of_g = vector_at(g[row] + j);
      put(vector_at(of.gain + j) * of_g, g_x[row] + j);
      put(vector_at(sums + j) + of_g * (vector_at(x[row] + j) - of.bias_at(j)), sums + j);
    }
  }
}

std::tuple<at::Tensor, at::Tensor> scaled_gradient(const at::Tensor& g, const at::Tensor& x, const at::Tensor& gain,
                                                   const std::optional<at::Tensor>& bias) {
  check_rows(g);
  check_rows(x);
  TORCH_CHECK(g.sizes() == x.sizes() && g.scalar_type() == x.scalar_type(), "two tensors of one shape and precision");
  const int64_t rows = x.size(0), width = x.size(1);
  const Gains of = gains_of(gain, bias, width);
  auto g_x = at::empty({rows, width}, x.options()), g_gain = at::empty({width}, gain.options());
  float* sums = g_gain.mutable_data_ptr<float>();
  for_type(x, [&](auto zero) {
    typedef decltype(zero) T;
    const Rows<T> to{g_x.mutable_data_ptr<T>(), width};
    at::parallel_for(0, width / LANES, COLUMNS / LANES, [&](int64_t begin, int64_t end) {
      columns_gradient(rows_of<T>(g), rows_of<T>(x), of, rows, begin * LANES, end * LANES, to, sums);
    });
  });
  return {g_x, g_gain};
}

// -- norms ------------------------------------------------------------------------------------------

// to (N, M) = x aᵀ.
template <int64_t N, int64_t M, typename T>
void products_of(Rows<const T> x, Floats a, int64_t width, Rows<float> to) {
  Vector sums[N][M] = {};
  for (int64_t j = 0; j < width; j += LANES) {
    for (int64_t n = 0; n < N; ++n) {
      const Vector of_x = vector_at(x[n] + j);
      for (int64_t m = 0; m < M; ++m) sums[n][m] += of_x * vector_at(a[m] + j);
    }
  }
  for (int64_t n = 0; n < N; ++n) {
    for (int64_t m = 0; m < M; ++m) to[n][m] = joined<Sum>(sums[n][m]);
  }
}

// to (N, rank) = x aᵀ.
template <int64_t N, typename T>
void products_of(Rows<const T> x, Floats a, int64_t rank, int64_t width, Rows<float> to) {
  int64_t k = 0;
  for (; k + BLOCK <= rank; k += BLOCK) products_of<N, BLOCK>(x, a.from(k), width, to.from(0, k));
  for (; k < rank; ++k) products_of<N, 1>(x, a.from(k), width, to.from(0, k));
}

// to (rows, rank) = x aᵀ with x (rows, width) and a (rank, width).
template <typename T>
void products(Rows<const T> x, int64_t rows, Floats a, int64_t rank, int64_t width, Rows<float> to) {
  int64_t row = 0;
  for (; row + BLOCK <= rows; row += BLOCK) products_of<BLOCK>(x.from(row), a, rank, width, to.from(row));
  for (; row < rows; ++row) products_of<1>(x.from(row), a, rank, width, to.from(row));
}

at::Tensor squared_norms(const at::Tensor& weight, const at::Tensor& squares, const at::Tensor& A, const at::Tensor& B,
                         double scaling) {
  check_rows(weight);
  TORCH_CHECK(A.dim() == 2, "A (rank, in)");
  const int64_t out = weight.size(0), in = weight.size(1), rank = A.size(0);
  const Floats a = floats_of(A, {rank, in}), b = floats_of(B, {out, rank});
  const float *of_weight = floats_of(squares, {out}).at, s = float(scaling);
  std::vector<float> all_inner(rank * rank);
  const Rows<float> inner{all_inner.data(), rank};
  products(a, rank, a, rank, in, inner);
  auto norms = at::empty({out}, squares.options());
  float* to = norms.mutable_data_ptr<float>();
  for_type(weight, [&](auto zero) {
    const auto w = rows_of<decltype(zero)>(weight);
    at::parallel_for(0, out, GRAIN, [&](int64_t begin, int64_t end) {
      std::vector<float> all_crossed((end - begin) * rank);
      const Rows<float> crossed{all_crossed.data(), rank};
      products(w.from(begin), end - begin, a, rank, in, crossed);
      for (int64_t j = begin; j < end; ++j) {
        float change = 0;
        for (int64_t k = 0; k < rank; ++k) {
          float of_update = 0;
          for (int64_t l = 0; l < rank; ++l) of_update += b[j][l] * inner[k][l];
          change += b[j][k] * (2 * crossed[j - begin][k] + s * of_update);
        }
        to[j] = of_weight[j] + s * change;
      }
    });
  });
  return norms;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(peftlab, library) {
  library.def("scaled(Tensor x, Tensor gain, Tensor? bias) -> Tensor");
  library.def("scaled_gradient(Tensor g, Tensor x, Tensor gain, Tensor? bias) -> (Tensor, Tensor)");
  library.def("squared_norms(Tensor weight, Tensor squares, Tensor A, Tensor B, float scaling) -> Tensor");
}

TORCH_LIBRARY_IMPL(peftlab, CPU, library) {
  library.impl("scaled", scaled);
  library.impl("scaled_gradient", scaled_gradient);
  library.impl("squared_norms", squared_norms);
}
