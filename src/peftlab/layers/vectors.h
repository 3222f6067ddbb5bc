// What the kernels have in common: vectors of numbers, bf16 in and out, random bits of a counter.
//
// Vectors are the compiler's own, as wide as the processor's registers: wider ones it would take apart, number
// by number where they are compared. No result depends on the width but by the order of sums, and in bf16's denormal
// numbers.
//
// Dropout's bits are those of a counter (Philox 4x32-10, Salmon et al. 2011) under the step's key, so that no mask is
// stored; bits.py says which, and has their readable form.
#pragma once

#include <ATen/core/Tensor.h>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#include <cmath>
#include <cstring>
#include <utility>

namespace {

#if defined(__AVX512F__)
constexpr int64_t LANES = 16;
#elif defined(__AVX2__)
constexpr int64_t LANES = 8;
#else
constexpr int64_t LANES = 4;
#endif

// A number of lanes of whole vectors, at least `n`.
inline int64_t padded(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

// Rows that lie `stride` numbers apart.
template <typename T>
struct Rows {
  T* at;
  int64_t stride;
  T* operator[](int64_t row) const { return at + row * stride; }
  Rows from(int64_t row, int64_t column = 0) const { return {(*this)[row] + column, stride}; }
};

template <typename T, int64_t N>
struct Of {
  typedef T Type __attribute__((vector_size(N * sizeof(T))));
};
typedef Of<float, LANES>::Type Vector;
typedef Of<int32_t, LANES>::Type Whole;
typedef Of<uint32_t, LANES>::Type Bits;
typedef Of<uint64_t, LANES / 2>::Type Pairs;
typedef Of<uint16_t, LANES>::Type Half;

template <typename V, typename T>
inline V load(const T* from) {
  V found;
  std::memcpy(&found, from, sizeof(V));
  return found;
}

template <typename V, typename T>
inline void store(V what, T* to) {
  std::memcpy(to, &what, sizeof(V));
}

template <typename To, typename From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  return load<To>(&from);
}

// 1.5 · 2²³: added to a small float, its low bits are that float's nearest whole number, ties to even.
constexpr float WHOLE = 12582912.0f;

// -- bf16, one number and a vector of them: to the nearest, ties to even ----------------------------
// The processor's own conversion, where it has one, gives 0 for denormal numbers.

inline float wide(float value) { return value; }
inline float wide(at::BFloat16 value) { return bits_as<float>(uint32_t(value.x) << 16); }

inline void narrow(float value, float* to) { *to = value; }
inline void narrow(float value, at::BFloat16* to) {
  const uint32_t bits = bits_as<uint32_t>(value);
  const uint32_t nearest = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  to->x = uint16_t(value != value ? 0x7fc0 : nearest);
}

inline Vector vector_at(const float* from) { return load<Vector>(from); }
inline Vector vector_at(const at::BFloat16* from) {
  return bits_as<Vector>(__builtin_convertvector(load<Half>(from), Bits) << 16);
}

inline void put(Vector value, float* to) { store(value, to); }
inline void put(Vector value, at::BFloat16* to) {
#if defined(__AVX512BF16__)
  store(_mm512_cvtneps_pbh(bits_as<__m512>(value)), to);
#else
  const Bits bits = bits_as<Bits>(value);
  const Bits nearest = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  store(__builtin_convertvector(value != value ? Bits{} + 0x7fc0 : nearest, Half), to);
#endif
}

// -- a vector's numbers joined ----------------------------------------------------------------------

struct Sum {
  template <typename T>
  T operator()(T one, T other) const { return one + other; }
};

struct Largest {
  template <typename T>
  T operator()(T one, T other) const { return one > other ? one : other; }
};

// Every number beside the one that is STEP away.
template <int STEP, int... LANE>
inline Vector swapped(Vector x, std::integer_sequence<int, LANE...>) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(x, x, (LANE ^ STEP)...);
#else
  return __builtin_shuffle(x, Whole{(LANE ^ STEP)...});
#endif
}

// One number of all.
template <typename Join, int STEP = LANES / 2>
inline float joined(Vector x) {
  x = Join()(x, swapped<STEP>(x, std::make_integer_sequence<int, LANES>()));
  if constexpr (STEP == 1) {
    return x[0];
  } else {
    return joined<Join, STEP / 2>(x);
  }
}

// -- a square of numbers transposed -----------------------------------------------------------------

// Where a lane's number lies in `one` and, behind it, `other`: lanes without the bit `step` take from `one`, the others
// from `other`, from their lanes with that bit (`second`) or without.
constexpr int place_of(int lane, int step, bool second) {
  return lane & step ? LANES + lane - (second ? 0 : step) : lane + (second ? step : 0);
}

template <int STEP, bool SECOND, int... LANE>
inline Vector halves(Vector one, Vector other, std::integer_sequence<int, LANE...>) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(one, other, place_of(LANE, STEP, SECOND)...);
#else
  return __builtin_shuffle(one, other, Whole{place_of(LANE, STEP, SECOND)...});
#endif
}

// In place: numbers whose row and column differ in a bit change places, bit by bit.
template <int STEP = LANES / 2>
inline void transpose(Vector (&rows)[LANES]) {
  constexpr auto lanes = std::make_integer_sequence<int, LANES>();
  for (int row = 0; row < LANES; ++row) {
    if (row & STEP) continue;
    const Vector one = rows[row], other = rows[row + STEP];
    rows[row] = halves<STEP, false>(one, other, lanes);
    rows[row + STEP] = halves<STEP, true>(one, other, lanes);
  }
  if constexpr (STEP > 1) transpose<STEP / 2>(rows);
}

// -- the bits of dropout ----------------------------------------------------------------------------

constexpr int64_t ROWS = 8;  // that share what Philox gives

struct Dropout {
  uint32_t keep_from;  // a lane that is as large is kept; 0: nothing is dropped
  float scale;
  uint32_t key[2];
  uint32_t call;
};

inline Dropout dropout_of(double p, int64_t key, int64_t call) {
  const uint64_t bits = uint64_t(key);
  const float scale = p < 1 ? float(1 / (1 - p)) : 0;
  return {uint32_t(std::lround(p * 65536)), scale, {uint32_t(bits), uint32_t(bits >> 32)}, uint32_t(call)};
}

// Of eight rows, the `rows`-th such, and a vector of columns, from `column` on.
struct Place {
  uint32_t column, rows, place;
};

struct Random {
  Bits words[4];
};

// x · by, its upper and its lower 32 bits: the even numbers' products and the odd ones', in place. (Widened
// by a conversion they cross the register, which takes three times as long.)
inline void multiply(Bits x, uint64_t by, Bits& high, Bits& low) {
  constexpr uint64_t LOW = 0xffffffffu;
  const Pairs pairs = bits_as<Pairs>(x), even = (pairs & LOW) * by, odd = (pairs >> 32) * by;
  high = bits_as<Bits>((even >> 32) | (odd & ~LOW));
  low = bits_as<Bits>((even & LOW) | (odd << 32));
}

// N places together, since one waits for itself round after round.
template <int N>
inline void philox(const Place (&at)[N], const Dropout& dropout, Random (&found)[N]) {
  for (int n = 0; n < N; ++n) {
    Bits columns;
    for (uint32_t lane = 0; lane < LANES; ++lane) columns[lane] = at[n].column + lane;
    found[n] = {{columns, Bits{} + at[n].rows, Bits{} + at[n].place, Bits{} + dropout.call}};
  }
  uint32_t key[2] = {dropout.key[0], dropout.key[1]};
  for (int round = 0; round < 10; ++round) {
    for (int n = 0; n < N; ++n) {
      Bits(&x)[4] = found[n].words;
      Bits high[2], low[2];
      multiply(x[0], 0xD2511F53u, high[0], low[0]);
      multiply(x[2], 0xCD9E8D57u, high[1], low[1]);
      x[0] = high[1] ^ x[1] ^ key[0];
      x[1] = low[1];
      x[2] = high[0] ^ x[3] ^ key[1];
      x[3] = low[0];
    }
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
}

// 0 or 1 / (1 - p), in a vector of columns of one of the eight rows.
inline Vector kept(const Random& random, int64_t row, const Dropout& dropout) {
  const Whole lanes = bits_as<Whole>((random.words[row / 2] >> (row % 2 * 16)) & 0xffffu);
  return lanes >= int32_t(dropout.keep_from) ? Vector{} + dropout.scale : Vector{};
}

}  // namespace
