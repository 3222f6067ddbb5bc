// Low-rank updates of layers that have one product: that of layer i is added at its columns of y.
//
//   low_rank            y[:, columns of i] += sᵢ x Aᵢᵀ Bᵢᵀ in place, and x Aᵀ of all layers side by side
//   low_rank_gradient   from g, the gradient of y: g_x += Σ sᵢ g[:, columns of i] Bᵢ Aᵢ in place, and the
//                       gradients of A₁, B₁, A₂, B₂, …
//
// x, y and g (rows, width) are in bf16; A (rank, in), B (out, rank) and all sums are in fp32, and what is added in
// place is rounded once. Everything of a tile of rows is done while it is in the cache. The gradients of A and B are
// sums over a few parts of the rows, the same for any number of threads.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "../layers/vectors.h"

namespace {

constexpr int64_t TILE = 16;      // rows computed together
constexpr int64_t CHUNK = 256;    // columns of a tile that are in fp32 at once
constexpr int64_t GRAIN = 2;      // tiles a thread takes at least
constexpr int64_t PARTS = 8;      // of the rows, each with sums of its own
constexpr int64_t SUMMED = 4096;  // sums that a thread adds up at least

typedef std::vector<float> Numbers;

typedef Rows<const at::BFloat16> Inputs;

// -- the products of a tile: (rows, width) by a narrow or a flat matrix -----------------------------

// out (rows, rank) = x (rows, width) w (width, rank); each row of w is padded to whole vectors.
void narrow_product(Inputs x, int64_t rows, int64_t width, const float* w, int64_t rank, Rows<float> out) {
  alignas(64) float wide_x[TILE][CHUNK] = {};
  const int64_t stride = padded(rank);
  for (int64_t lane = 0; lane < stride; lane += LANES) {
    Vector sums[TILE] = {};
    for (int64_t first = 0; first < width; first += CHUNK) {
      const int64_t size = std::min(CHUNK, width - first);
      for (int64_t row = 0; row < rows; ++row) {
        for (int64_t j = 0; j < size; j += LANES) put(vector_at(x[row] + first + j), &wide_x[row][j]);
      }
      for (int64_t j = 0; j < size; ++j) {
        const Vector of_w = vector_at(w + (first + j) * stride + lane);
        for (int64_t row = 0; row < TILE; ++row) sums[row] += wide_x[row][j] * of_w;
      }
    }
    const int64_t lanes = std::min(LANES, rank - lane);
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t k = 0; k < lanes; ++k) out[row][lane + k] = sums[row][k];
    }
  }
}

// y (N, width) += p (N, rank) w (rank, width).
template <int64_t N>
void add_product_of(Rows<at::BFloat16> y, int64_t width, Rows<const float> p, int64_t rank, const float* w) {
  for (int64_t j = 0; j < width; j += LANES) {
    Vector sums[N] = {};
    for (int64_t k = 0; k < rank; ++k) {
      const Vector of_w = vector_at(w + k * width + j);
      for (int64_t row = 0; row < N; ++row) sums[row] += p[row][k] * of_w;
    }
    for (int64_t row = 0; row < N; ++row) put(vector_at(y[row] + j) + sums[row], y[row] + j);
  }
}

void add_product(Rows<at::BFloat16> y, int64_t rows, int64_t width, Rows<const float> p, int64_t rank, const float* w) {
  if (rows == TILE) return add_product_of<TILE>(y, width, p, rank, w);
  for (int64_t row = 0; row < rows; ++row) add_product_of<1>(y.from(row), width, p.from(row), rank, w);
}

// sum (N, width) += pᵀ x, of N columns of p.
template <int64_t N>
void add_outer_product_of(Rows<const float> p, Inputs x, int64_t rows, int64_t width, float* sum) {
  for (int64_t j = 0; j < width; j += LANES) {
    Vector sums[N];
    for (int64_t k = 0; k < N; ++k) sums[k] = vector_at(sum + k * width + j);
    for (int64_t row = 0; row < rows; ++row) {
      const Vector of_x = vector_at(x[row] + j);
      for (int64_t k = 0; k < N; ++k) sums[k] += p[row][k] * of_x;
    }
    for (int64_t k = 0; k < N; ++k) put(sums[k], sum + k * width + j);
  }
}

// sum (rank, width) += pᵀ x with p (rows, rank) and x (rows, width).
void add_outer_product(Rows<const float> p, int64_t rank, Inputs x, int64_t rows, int64_t width, float* sum) {
  int64_t k = 0;
  for (; k + 8 <= rank; k += 8) add_outer_product_of<8>(p.from(0, k), x, rows, width, sum + k * width);
  for (; k + 4 <= rank; k += 4) add_outer_product_of<4>(p.from(0, k), x, rows, width, sum + k * width);
  for (; k < rank; ++k) add_outer_product_of<1>(p.from(0, k), x, rows, width, sum + k * width);
}

template <typename Work>
void each_tile(int64_t rows, const Work& work) {
  at::parallel_for(0, (rows + TILE - 1) / TILE, GRAIN, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) work(tile * TILE, std::min(TILE, rows - tile * TILE));
  });
}

// `size` numbers: what `add_tile` adds to them, summed over all tiles.
template <typename Work>
Numbers sum_over_tiles(int64_t rows, int64_t size, const Work& add_tile) {
  const int64_t tiles = (rows + TILE - 1) / TILE;
  const int64_t rows_of_part = TILE * std::max(GRAIN, (tiles + PARTS - 1) / PARTS);
  std::vector<Numbers> parts((rows + rows_of_part - 1) / rows_of_part);
  at::parallel_for(0, int64_t(parts.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      parts[part].resize(size);
      const int64_t last = std::min(rows, (part + 1) * rows_of_part);
      for (int64_t row = part * rows_of_part; row < last; row += TILE) {
        add_tile(row, std::min(TILE, last - row), parts[part].data());
      }
    }
  });
  Numbers sums(size);
  at::parallel_for(0, size, SUMMED, [&](int64_t begin, int64_t end) {
    for (const Numbers& part : parts) {
      for (int64_t i = begin; i < end; ++i) sums[i] += part[i];
    }
  });
  return sums;
}

// -- the operations ---------------------------------------------------------------------------------

// The update of one layer: at the columns of y from `column` on, and those of x Aᵀ from `first` on.
struct Update {
  const float *A, *B;
  float scaling;
  int64_t rank, out, column, first;
};

int64_t rank_of(const std::vector<Update>& updates) { return updates.back().first + updates.back().rank; }

std::vector<Update> updates_of(at::TensorList pairs, at::IntArrayRef columns, at::ArrayRef<double> scalings, int64_t in,
                               int64_t out) {
  TORCH_CHECK(!columns.empty() && pairs.size() == 2 * columns.size() && columns.size() == scalings.size(),
              "A, B, a first column and a scaling of each update");
  std::vector<Update> updates;
  int64_t first = 0;
  for (size_t i = 0; i < columns.size(); ++i) {
    const at::Tensor &A = pairs[2 * i], &B = pairs[2 * i + 1];
    for (const at::Tensor* matrix : {&A, &B}) {
      TORCH_CHECK(matrix->scalar_type() == at::kFloat && matrix->dim() == 2 && matrix->is_contiguous(),
                  "matrices in fp32, contiguous");
    }
    const int64_t rank = A.size(0), width = B.size(0);
    TORCH_CHECK(A.size(1) == in && B.size(1) == rank, "A (rank, ", in, ") and B (out, rank)");
    TORCH_CHECK(width % LANES == 0 && columns[i] >= 0 && columns[i] + width <= out, "columns of y");
    updates.push_back({A.const_data_ptr<float>(), B.const_data_ptr<float>(), float(scalings[i]), rank, width,
                       columns[i], first});
    first += rank;
  }
  return updates;
}

// sᵢ Bᵢᵀ (rank, out) of each update.
std::vector<Numbers> scaled_Bt_of(const std::vector<Update>& updates) {
  std::vector<Numbers> all;
  for (const Update& u : updates) {
    Numbers& Bt = all.emplace_back(u.rank * u.out);
    for (int64_t j = 0; j < u.out; ++j) {
      for (int64_t k = 0; k < u.rank; ++k) Bt[k * u.out + j] = u.scaling * u.B[j * u.rank + k];
    }
  }
  return all;
}

// sᵢ Bᵢ (out, rank) of each update, as narrow_product takes it.
std::vector<Numbers> scaled_B_of(const std::vector<Update>& updates) {
  std::vector<Numbers> all;
  for (const Update& u : updates) {
    const int64_t lanes = padded(u.rank);
    Numbers& B = all.emplace_back(u.out * lanes);
    for (int64_t j = 0; j < u.out; ++j) {
      for (int64_t k = 0; k < u.rank; ++k) B[j * lanes + k] = u.scaling * u.B[j * u.rank + k];
    }
  }
  return all;
}

void check_rows(const at::Tensor& x, int64_t rows) {
  TORCH_CHECK(x.scalar_type() == at::kBFloat16 && x.dim() == 2 && x.is_contiguous() && x.size(0) == rows &&
                  x.size(1) % LANES == 0,
              rows, " rows in bf16 of a multiple of ", LANES, " numbers, contiguous");
}

Inputs inputs_of(const at::Tensor& x) { return {x.const_data_ptr<at::BFloat16>(), x.size(1)}; }

Rows<at::BFloat16> outputs_of(const at::Tensor& y) { return {y.mutable_data_ptr<at::BFloat16>(), y.size(1)}; }

at::Tensor low_rank(at::Tensor& y, const at::Tensor& x, at::TensorList pairs, at::IntArrayRef columns,
                    at::ArrayRef<double> scalings) {
  TORCH_CHECK(x.dim() == 2 && y.dim() == 2, "rows");
  const int64_t rows = x.size(0), in = x.size(1);
  check_rows(x, rows);
  check_rows(y, rows);
  const auto updates = updates_of(pairs, columns, scalings, in, y.size(1));
  const int64_t rank = rank_of(updates), lanes = padded(rank);
  Numbers At(in * lanes);
  for (const Update& u : updates) {
    for (int64_t k = 0; k < u.rank; ++k) {
      for (int64_t j = 0; j < in; ++j) At[j * lanes + u.first + k] = u.A[k * in + j];
    }
  }
  const auto scaled_Bt = scaled_Bt_of(updates);
  auto inner = at::empty({rows, rank}, x.options().dtype(at::kFloat));
  const Rows<float> p{inner.mutable_data_ptr<float>(), rank};
  const Inputs of_x = inputs_of(x);
  const auto outputs = outputs_of(y);
  each_tile(rows, [&](int64_t row, int64_t n) {
    narrow_product(of_x.from(row), n, in, At.data(), rank, p.from(row));
    for (size_t i = 0; i < updates.size(); ++i) {
      const Update& u = updates[i];
      add_product(outputs.from(row, u.column), n, u.out, {p[row] + u.first, rank}, u.rank, scaled_Bt[i].data());
    }
  });
  return inner;
}

// A₁'s, B₁'s, … from the gradients of every A, then of every sᵢ Bᵢᵀ; A's are empty if they are not needed.
std::vector<at::Tensor> gradients_of(const std::vector<Update>& updates, const Numbers& totals, bool needs_A,
                                     int64_t in, at::TensorOptions options) {
  std::vector<at::Tensor> gradients;
  const float* g_Bt = totals.data() + rank_of(updates) * in;
  for (const Update& u : updates) {
    auto g_A = at::empty({needs_A ? u.rank : 0, in}, options), g_B = at::empty({u.out, u.rank}, options);
    std::copy_n(totals.data() + u.first * in, g_A.numel(), g_A.mutable_data_ptr<float>());
    float* numbers = g_B.mutable_data_ptr<float>();
    for (int64_t j = 0; j < u.out; ++j) {
      for (int64_t k = 0; k < u.rank; ++k) numbers[j * u.rank + k] = u.scaling * g_Bt[k * u.out + j];
    }
    g_Bt += u.rank * u.out;
    gradients.push_back(g_A);
    gradients.push_back(g_B);
  }
  return gradients;
}

std::vector<at::Tensor> low_rank_gradient(const at::Tensor& g, const std::optional<at::Tensor>& x,
                                          const at::Tensor& inner, const std::optional<at::Tensor>& g_x,
                                          at::TensorList pairs, at::IntArrayRef columns,
                                          at::ArrayRef<double> scalings) {
  TORCH_CHECK(g.dim() == 2 && !pairs.empty() && pairs[0].dim() == 2, "rows, and the updates' matrices");
  const int64_t rows = g.size(0), in = pairs[0].size(1);
  check_rows(g, rows);
  for (const auto* other : {&x, &g_x}) {
    if (other->has_value()) {
      check_rows(**other, rows);
      TORCH_CHECK((*other)->size(1) == in, "A (rank, in)");
    }
  }
  const auto updates = updates_of(pairs, columns, scalings, in, g.size(1));
  const int64_t rank = rank_of(updates);
  TORCH_CHECK(inner.scalar_type() == at::kFloat && inner.is_contiguous(), "x Aᵀ in fp32, contiguous");
  TORCH_CHECK(inner.sizes() == at::IntArrayRef({rows, rank}), "x Aᵀ (rows, rank)");
  Numbers all_A;
  int64_t size = rank * in;  // of the gradients of every A, then of every sᵢ Bᵢᵀ
  for (const Update& u : updates) {
    all_A.insert(all_A.end(), u.A, u.A + u.rank * in);
    size += u.rank * u.out;
  }
  const auto scaled_B = scaled_B_of(updates);
  const Rows<const float> p{inner.const_data_ptr<float>(), rank};
  const Inputs of_g = inputs_of(g);
  const Numbers totals = sum_over_tiles(rows, size, [&](int64_t row, int64_t n, float* sums) {
    Numbers g_inner(n * rank);
    const Rows<float> g_p{g_inner.data(), rank};
    float* g_Bt = sums + rank * in;
    for (size_t i = 0; i < updates.size(); ++i) {
      const Update& u = updates[i];
      const Inputs g_u = of_g.from(row, u.column);
      narrow_product(g_u, n, u.out, scaled_B[i].data(), u.rank, g_p.from(0, u.first));
      add_outer_product(p.from(row, u.first), u.rank, g_u, n, u.out, g_Bt);
      g_Bt += u.rank * u.out;
    }
    if (g_x) add_product(outputs_of(*g_x).from(row), n, in, {g_p.at, rank}, rank, all_A.data());
    if (x) add_outer_product({g_p.at, rank}, rank, inputs_of(*x).from(row), n, in, sums);
  });
  return gradients_of(updates, totals, x.has_value(), in, inner.options());
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(peftlab, library) {
  library.def("low_rank(Tensor(a!) y, Tensor x, Tensor[] pairs, int[] columns, float[] scalings) -> Tensor");
  library.def(
      "low_rank_gradient(Tensor g, Tensor? x, Tensor inner, Tensor(a!)? g_x, Tensor[] pairs, int[] columns, "
      "float[] scalings) -> Tensor[]");
}

TORCH_LIBRARY_IMPL(peftlab, CPU, library) {
  library.impl("low_rank", low_rank);
  library.impl("low_rank_gradient", low_rank_gradient);
}
