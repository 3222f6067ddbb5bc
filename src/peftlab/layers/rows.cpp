// Rows around a product in eight bits: quantised before it, scaled behind it; one pass each.
//
//   rows_to_codes   x ∘ columns, row by row, to round(r / s_r) with s_r = max|r| / 127
//   scale_rows_     y <- y ∘ s_r + bias, in place
//   sums_to_rows    int32 sums to s_r ∘ sums in the precision asked for
//
// The readable form of each is in rows.py, and a test holds the two together bit by bit. Plain
// loops, which the compiler makes vectors of; magnitudes are compared as integers, whose largest it
// may find in any order.
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

constexpr int64_t GRAIN = 16;          // rows a thread takes at least
constexpr float LARGEST = 127;
constexpr float SMALLEST = 1e-30f;     // a row of zeros is not divided by zero

// One row. Its own function, all by value: a byte that is written may be anyone's, and a compiler
// that can't rule that out makes no vectors.
template <typename T>
float encode_row(const T* __restrict from, const float* __restrict columns, int64_t width,
                 uint32_t zero, float* __restrict row, uint8_t* __restrict to) {
  if (columns) {
    for (int64_t j = 0; j < width; ++j) row[j] = wide(from[j]) * columns[j];
  } else {
    for (int64_t j = 0; j < width; ++j) row[j] = wide(from[j]);
  }
  int32_t largest = 0;
  for (int64_t j = 0; j < width; ++j) {
    const int32_t magnitude = bits_as<int32_t>(row[j]) & 0x7fffffff;
    largest = magnitude > largest ? magnitude : largest;
  }
  const float scale = std::max(bits_as<float>(largest), SMALLEST) / LARGEST;
  const float inverse = 1 / scale;
  for (int64_t j = 0; j < width; ++j) {
    to[j] = uint8_t(bits_as<uint32_t>(row[j] * inverse + WHOLE) + zero);
  }
  return scale;
}

template <typename T>
void encode(const T* x, const float* columns, int64_t n, int64_t width, uint32_t zero,
            uint8_t* codes, float* scales) {
  at::parallel_for(0, n, GRAIN, [=](int64_t begin, int64_t end) {
    std::vector<float> row(width);
    for (int64_t i = begin; i < end; ++i) {
      scales[i] = encode_row(x + i * width, columns, width, zero, row.data(), codes + i * width);
    }
  });
}

std::tuple<at::Tensor, at::Tensor> rows_to_codes(
    const at::Tensor& x, const std::optional<at::Tensor>& columns, bool is_signed) {
  TORCH_CHECK(x.dim() == 2 && x.is_contiguous());
  const int64_t n = x.size(0), width = x.size(1);
  auto codes = at::empty({n, width}, x.options().dtype(is_signed ? at::kChar : at::kByte));
  auto scales = at::empty({n, 1}, x.options().dtype(at::kFloat));
  const float* factors = columns ? columns->const_data_ptr<float>() : nullptr;
  auto* to = static_cast<uint8_t*>(codes.mutable_data_ptr());
  const uint32_t zero = is_signed ? 0 : 128;
  if (x.scalar_type() == at::kBFloat16) {
    encode(x.const_data_ptr<at::BFloat16>(), factors, n, width, zero, to, scales.mutable_data_ptr<float>());
  } else {
    encode(x.const_data_ptr<float>(), factors, n, width, zero, to, scales.mutable_data_ptr<float>());
  }
  return {codes, scales};
}

template <typename T>
void scale(T* y, const float* scales, const T* bias, int64_t n, int64_t width) {
  at::parallel_for(0, n, GRAIN, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      T* row = y + i * width;
      const float factor = scales[i];
      if (bias) {
        for (int64_t j = 0; j < width; ++j) narrow(wide(row[j]) * factor + wide(bias[j]), row + j);
      } else {
        for (int64_t j = 0; j < width; ++j) narrow(wide(row[j]) * factor, row + j);
      }
    }
  });
}

void scale_rows_(at::Tensor& y, const at::Tensor& scales, const std::optional<at::Tensor>& bias) {
  TORCH_CHECK(y.dim() == 2 && y.is_contiguous());
  const float* factors = scales.const_data_ptr<float>();
  const int64_t n = y.size(0), width = y.size(1);
  if (y.scalar_type() == at::kBFloat16) {
    scale(y.mutable_data_ptr<at::BFloat16>(), factors, bias ? bias->const_data_ptr<at::BFloat16>() : nullptr, n, width);
  } else {
    scale(y.mutable_data_ptr<float>(), factors, bias ? bias->const_data_ptr<float>() : nullptr, n, width);
  }
}

template <typename T>
void decode(const int32_t* sums, const float* scales, T* out, int64_t n, int64_t width) {
  at::parallel_for(0, n, GRAIN, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float factor = scales[i];
      const int32_t* from = sums + i * width;
      T* to = out + i * width;
      for (int64_t j = 0; j < width; ++j) narrow(float(from[j]) * factor, to + j);
    }
  });
}

at::Tensor sums_to_rows(const at::Tensor& sums, const at::Tensor& scales, at::ScalarType dtype) {
  TORCH_CHECK(sums.dim() == 2 && sums.is_contiguous());
  auto out = at::empty(sums.sizes(), sums.options().dtype(dtype));
  const int32_t* from = sums.const_data_ptr<int32_t>();
  const float* factors = scales.const_data_ptr<float>();
  const int64_t n = sums.size(0), width = sums.size(1);
  if (dtype == at::kBFloat16) {
    decode(from, factors, out.mutable_data_ptr<at::BFloat16>(), n, width);
  } else {
    decode(from, factors, out.mutable_data_ptr<float>(), n, width);
  }
  return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(peftlab, library) {
  library.def("rows_to_codes(Tensor x, Tensor? columns, bool is_signed) -> (Tensor, Tensor)");
  library.def("scale_rows_(Tensor(a!) y, Tensor scales, Tensor? bias) -> ()");
  library.def("sums_to_rows(Tensor sums, Tensor scales, ScalarType dtype) -> Tensor");
}

TORCH_LIBRARY_IMPL(peftlab, CPU, library) {
  library.impl("rows_to_codes", rows_to_codes);
  library.impl("scale_rows_", scale_rows_);
  library.impl("sums_to_rows", sums_to_rows);
}
