// Products with a frozen weight on a processor with AMX, their outputs in bf16, which are rounded once.
//
//   product            x (rows, in), W (out, in), c (out)   ->   x Wᵀ + c (rows, out)     in bf16, summed in fp32
//   product_gradient   g (rows, out), W                     ->   g W (rows, in)
//   codes_product      q (rows, in), Q (out, in), c         ->   s_q ∘ (q Qᵀ) ∘ s + c     int8, summed in int32
//   codes_gradient     q (rows, out), Q                     ->   s_q ∘ (q Q)              s_q (rows), s (out) in fp32
//
// W is packed for the tiles (tiles.h) a block at a time, each time: a packed copy would take as much memory as W does.
// A block, 384 columns by at most 1,536 bytes along the sum, stays in the second-level cache while all rows pass, and
// what W has next is fetched meanwhile, a few lines a step.
//
// A row's numbers depend on no other row, and on no number of threads.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <type_traits>

#include "vectors.h"

#if defined(__AMX_BF16__) && defined(__AMX_INT8__) && defined(__AVX512F__) && defined(__linux__)
#include "tiles.h"

namespace {

typedef at::BFloat16 Output;
template <typename Number>  // of what is multiplied
using SumOf = std::conditional_t<std::is_same_v<Number, int8_t>, int32_t, float>;

constexpr int64_t GROUP = 12;             // panels of 32 columns in a block of W
constexpr int64_t SLICE = 24;             // its lines along the sum, at most
constexpr int64_t BAND = 64 * PAIR;       // rows, whose sums are kept from slice to slice
constexpr int64_t LONGEST_SUM = 1 << 17;  // products of two codes, each at most 127² or 2¹⁴, in int32
constexpr int64_t READ = 3, WRITTEN = 4;  // lines of W, and of the output, that are fetched in a step

// -- the product of a block --------------------------------------------------------------------------

// Lines that are fetched ahead: `left` of them, `lines` in each row.
template <bool IS_WRITTEN>
struct Ahead {
  const char* at = nullptr;
  int64_t stride = 0, lines = 1, left = 0, line = 0;

  void fetch(int64_t some) {
    for (; some > 0 && left > 0; --some, --left) {
      // what is written soon into the first level, what is read next into the second
      __builtin_prefetch(at + line * LINE, IS_WRITTEN, IS_WRITTEN ? 3 : 2);
      if (++line == lines) {
        line = 0;
        at += stride;
      }
    }
  }
};

// A tile of sums += one of x by one of w. An instruction names its tiles, so no function can be given them.
#define ADD_PRODUCT(SUMS, X, W)                      \
  do {                                               \
    if constexpr (std::is_same_v<Number, int8_t>) {  \
      _tile_dpbssd(SUMS, X, W);                      \
    } else {                                         \
      _tile_dpbf16ps(SUMS, X, W);                    \
    }                                                \
  } while (false)

// sums (2, 2, 16, 16) = those so far + x w: of 32 rows, and of 32 columns that are packed.
template <typename Number>
void add_product(Rows<const Number> x, const Number* w, int64_t depth, bool begins, SumOf<Number>* sums,
                 Ahead<false>& next, Ahead<true>& outputs) {
  constexpr int64_t OF_TILE = TILE * TILE;
  const Number *upper = x[0], *lower = x[TILE];
  const int64_t stride = x.stride * int64_t(sizeof(Number));
  asm volatile("" ::: "memory");  // the compiler does not know that tiles are loaded from what was packed
  if (begins) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, sums, LINE);
    _tile_loadd(1, sums + OF_TILE, LINE);
    _tile_loadd(2, sums + 2 * OF_TILE, LINE);
    _tile_loadd(3, sums + 3 * OF_TILE, LINE);
  }
  for (int64_t k = 0; k < depth; k += STEP<Number>, w += 2 * SIZE<Number>) {
    _tile_loadd(4, upper + k, stride);
    _tile_loadd(6, w, LINE);
    ADD_PRODUCT(0, 4, 6);
    _tile_loadd(7, w + SIZE<Number>, LINE);
    ADD_PRODUCT(1, 4, 7);
    _tile_loadd(5, lower + k, stride);
    ADD_PRODUCT(2, 5, 6);
    ADD_PRODUCT(3, 5, 7);
    next.fetch(READ);
    outputs.fetch(WRITTEN);
  }
  _tile_stored(0, sums, LINE);
  _tile_stored(1, sums + OF_TILE, LINE);
  _tile_stored(2, sums + 2 * OF_TILE, LINE);
  _tile_stored(3, sums + 3 * OF_TILE, LINE);
}

// What sums become: of_rows ∘ sums ∘ of_columns + bias. Null pointers are ones, and no bias.
struct Scaling {
  const Output* bias = nullptr;
  const float *of_rows = nullptr, *of_columns = nullptr;
};

inline Vector sums_at(const float* from) { return vector_at(from); }
inline Vector sums_at(const int32_t* from) { return __builtin_convertvector(load<Whole>(from), Vector); }

// y (n, 16) of sums (n, 16), whose first row and column are these.
template <typename Sum>
void finish(const Sum* sums, int64_t n, int64_t row, int64_t column, const Scaling& scaling, Rows<Output> y) {
  const Vector bias = scaling.bias ? vector_at(scaling.bias + column) : Vector{};
  const Vector columns = scaling.of_columns ? vector_at(scaling.of_columns + column) : Vector{} + 1;
  for (int64_t i = 0; i < n; ++i) {
    const Vector factors = scaling.of_rows ? columns * scaling.of_rows[row + i] : columns;
    put(sums_at(sums + i * TILE) * factors + bias, y.from(row + i, column).at);
  }
}

// A part of the right side.
struct Block {
  int64_t first, panels, k, depth;
};

// x (rows, depth) by the right side to y: some of its panels of 32 columns.
template <typename Number, bool IS_TRANSPOSED>
class Panels {
 public:
  Panels(Rows<const Number> x, int64_t rows, int64_t depth, Right<Number, IS_TRANSPOSED> right, Scaling scaling,
         Rows<Output> y, int64_t begin, int64_t end)
      : x(x),
        rows(rows),
        depth(depth),
        right(right),
        scaling(scaling),
        y(y),
        begin(begin),
        end(end),
        slices((depth + LONGEST - 1) / LONGEST),
        packed(GROUP * PAIR * LONGEST),
        last_rows(PAIR * depth),
        sums((slices > 1 ? (std::min(BAND, rows) + PAIR - 1) / PAIR * GROUP : 1) * PAIR * PAIR) {}

  void compute() {
    copy_last_rows();
    for (int64_t row = 0; row < rows; row += BAND) {
      for (Block block = block_at(begin, 0); block.panels > 0; block = after(block)) {
        right.pack(block.k, block.first * PAIR, block.depth, block.panels, packed.at);
        add_block(row, std::min(BAND, rows - row), block);
      }
    }
  }

 private:
  typedef Rows<const Number> Inputs;
  static constexpr int64_t LONGEST = SLICE * STEP<Number>;

  Block block_at(int64_t first, int64_t k) const {
    const int64_t slice = (depth / STEP<Number> + slices - 1) / slices * STEP<Number>;
    return {first, std::min(GROUP, end - first), k, std::min(slice, depth - k)};
  }

  Block after(const Block& block) const {
    const int64_t k = block.k + block.depth;
    return k < depth ? block_at(block.first, k) : block_at(block.first + block.panels, 0);
  }

  // Fewer than 32 rows at the end, with zeros below: a tile has sixteen.
  void copy_last_rows() {
    const int64_t some = rows % PAIR;
    if (some == 0) return;
    std::fill_n(last_rows.at, PAIR * depth, Number(0));
    std::copy_n(x[rows - some], some * depth, last_rows.at);
  }

  void add_block(int64_t row, int64_t n, const Block& block) {
    Ahead<false> next = ahead(after(block));
    for (int64_t i = 0; i < n; i += PAIR) {
      const Inputs of_x = n - i < PAIR ? Inputs{last_rows.at, depth} : x.from(row + i);
      for (int64_t p = 0; p < block.panels; ++p) {
        add_panel(of_x.from(0, block.k), row + i, std::min(PAIR, n - i), p, block, next);
      }
    }
  }

  void add_panel(Inputs of_x, int64_t row, int64_t some, int64_t p, const Block& block, Ahead<false>& next) {
    const int64_t column = (block.first + p) * PAIR, kept = slices > 1 ? row % BAND / PAIR * GROUP + p : 0;
    const bool ends = block.k + block.depth == depth;
    SumOf<Number>* of_panel = sums.at + kept * PAIR * PAIR;
    Ahead<true> outputs;
    if (ends) {
      outputs = {reinterpret_cast<const char*>(y.from(row, column).at), y.stride * int64_t(sizeof(Output)), 1, some};
    }
    add_product(of_x, packed.at + p * PAIR * block.depth, block.depth, block.k == 0, of_panel, next, outputs);
    for (int64_t tile = 0; ends && tile < 4; ++tile) {
      const int64_t below = tile / 2 * TILE;
      finish(of_panel + tile * TILE * TILE, std::min(TILE, some - below), row + below, column + tile % 2 * TILE, scaling,
             y);
    }
  }

  Ahead<false> ahead(const Block& block) const {
    if (block.panels <= 0) return {};
    const Inputs w = right.from(block.k, block.first * PAIR);
    const int64_t columns = block.panels * PAIR;
    const int64_t in_row = IS_TRANSPOSED ? block.depth : columns, of_rows = IS_TRANSPOSED ? columns : block.depth;
    const int64_t lines = (in_row + STEP<Number> - 1) / STEP<Number>;
    return {reinterpret_cast<const char*>(w.at), w.stride * int64_t(sizeof(Number)), lines, lines * of_rows};
  }

  const Inputs x;
  const int64_t rows, depth;
  const Right<Number, IS_TRANSPOSED> right;
  const Scaling scaling;
  const Rows<Output> y;
  const int64_t begin, end, slices;
  const Tiles tiles;
  const Room<Number> packed, last_rows;
  const Room<SumOf<Number>> sums;
};

// -- the operations ---------------------------------------------------------------------------------

template <typename Number, bool IS_TRANSPOSED>
at::Tensor multiply(const at::Tensor& x, const at::Tensor& weight, Scaling scaling) {
  for (const at::Tensor* matrix : {&x, &weight}) {
    TORCH_CHECK(matrix->scalar_type() == c10::CppTypeToScalarType<Number>::value && matrix->dim() == 2 &&
                    matrix->is_contiguous(),
                "matrices in ", c10::CppTypeToScalarType<Number>::value, ", contiguous");
  }
  const int64_t rows = x.size(0), depth = x.size(1), width = weight.size(IS_TRANSPOSED ? 0 : 1);
  const bool is_whole = depth > 0 && depth % STEP<Number> == 0 && width % PAIR == 0;
  TORCH_CHECK(weight.size(IS_TRANSPOSED ? 1 : 0) == depth && is_whole, "a weight (out, in) of multiples of ",
              STEP<Number>, ", and rows of its width");
  TORCH_CHECK(depth <= LONGEST_SUM, "sums of at most ", LONGEST_SUM, " products");
  TORCH_CHECK(has_tiles(), "the system lends no tiles");
  auto y = at::empty({rows, width}, x.options().dtype(at::kBFloat16));
  if (rows == 0) return y;
  const Rows<const Number> of_x{x.const_data_ptr<Number>(), depth};
  const Right<Number, IS_TRANSPOSED> right{{weight.const_data_ptr<Number>(), weight.size(1)}};
  const Rows<Output> of_y{y.mutable_data_ptr<Output>(), width};
  at::parallel_for(0, width / PAIR, 1, [&](int64_t begin, int64_t end) {
    Panels<Number, IS_TRANSPOSED>(of_x, rows, depth, right, scaling, of_y, begin, end).compute();
  });
  return y;
}

const Output* bias_of(const std::optional<at::Tensor>& bias, const at::Tensor& weight) {
  if (!bias) return nullptr;
  TORCH_CHECK(bias->scalar_type() == at::kBFloat16 && bias->is_contiguous() && bias->numel() == weight.size(0),
              "a bias (out) in bf16");
  return bias->const_data_ptr<Output>();
}

const float* scales_of(const at::Tensor& scales, int64_t n) {
  TORCH_CHECK(scales.scalar_type() == at::kFloat && scales.is_contiguous() && scales.numel() == n,
              "scales in fp32, one for each row of codes");
  return scales.const_data_ptr<float>();
}

at::Tensor product(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias) {
  return multiply<at::BFloat16, true>(x, weight, {bias_of(bias, weight)});
}

at::Tensor product_gradient(const at::Tensor& g, const at::Tensor& weight) {
  return multiply<at::BFloat16, false>(g, weight, {});
}

at::Tensor codes_product(const at::Tensor& codes, const at::Tensor& scales, const at::Tensor& weight,
                         const at::Tensor& columns, const std::optional<at::Tensor>& bias) {
  const Scaling scaling{bias_of(bias, weight), scales_of(scales, codes.size(0)), scales_of(columns, weight.size(0))};
  return multiply<int8_t, true>(codes, weight, scaling);
}

at::Tensor codes_gradient(const at::Tensor& codes, const at::Tensor& scales, const at::Tensor& weight) {
  return multiply<int8_t, false>(codes, weight, {nullptr, scales_of(scales, codes.size(0)), nullptr});
}

}  // namespace

TORCH_LIBRARY_IMPL(peftlab, CPU, library) {
  library.impl("product", product);
  library.impl("product_gradient", product_gradient);
  library.impl("codes_product", codes_product);
  library.impl("codes_gradient", codes_gradient);
}

#else  // the compiler, or the processor that it builds for, knows no such tiles

namespace {
bool has_tiles() { return false; }
}  // namespace

#endif

TORCH_LIBRARY_FRAGMENT(peftlab, library) {
  library.def("has_tiles() -> bool", has_tiles);
  library.def("product(Tensor x, Tensor weight, Tensor? bias) -> Tensor");
  library.def("product_gradient(Tensor g, Tensor weight) -> Tensor");
  library.def("codes_product(Tensor codes, Tensor scales, Tensor weight, Tensor columns, Tensor? bias) -> Tensor");
  library.def("codes_gradient(Tensor codes, Tensor scales, Tensor weight) -> Tensor");
}
