// What the kernels have in common: vectors of sixteen numbers, bf16 in and out, random bits of a counter.
//
// Vectors are the compiler's own, in whatever registers there are. Dropout's bits are those of a counter
// (Philox 4x32-10, Salmon et al. 2011) under the step's key, so that no mask is stored:
//
//   lane i mod 8, of 16 bits, of Philox(j, i div 8, place, call)     of row i, column j
//
// Its readable form is engine/philox.py.
#pragma once

#include <ATen/core/Tensor.h>

#include <cmath>
#include <cstring>

namespace {

constexpr int64_t LANES = 16;
constexpr int64_t ROWS_AT_ONCE = 8;  // that share what Philox gives
typedef float Vector __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t Whole __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint32_t Bits __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint64_t Pairs __attribute__((vector_size(64), aligned(8), may_alias));
typedef uint16_t Half __attribute__((vector_size(32), aligned(2), may_alias));

template <typename V, typename T>
V load(const T* from) {
  V found;
  std::memcpy(&found, from, sizeof(V));
  return found;
}

template <typename V, typename T>
void store(V what, T* to) {
  std::memcpy(to, &what, sizeof(V));
}

template <typename To, typename From>
To bits_as(From from) {
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

// -- bf16, one number and sixteen: to the nearest, ties to even -------------------------------------

inline float wide(float value) { return value; }
inline float wide(at::BFloat16 value) { return bits_as<float>(uint32_t(value.x) << 16); }

inline void narrow(float value, float* to) { *to = value; }
inline void narrow(float value, at::BFloat16* to) {
  const uint32_t bits = bits_as<uint32_t>(value);
  const uint32_t nearest = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  to->x = uint16_t(value != value ? 0x7fc0 : nearest);
}

inline Vector all_of(const float* from) { return load<Vector>(from); }
inline Vector all_of(const at::BFloat16* from) {
  return bits_as<Vector>(__builtin_convertvector(load<Half>(from), Bits) << 16);
}

inline void put(Vector value, float* to) { store(value, to); }
inline void put(Vector value, at::BFloat16* to) {
  const Bits bits = bits_as<Bits>(value);
  const Bits nearest = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  store(__builtin_convertvector(value != value ? Bits{} + 0x7fc0 : nearest, Half), to);
}

// -- a vector's numbers joined ----------------------------------------------------------------------

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLED(x, ...) __builtin_shufflevector(x, x, __VA_ARGS__)
#else
#define SHUFFLED(x, ...) __builtin_shuffle(x, Whole{__VA_ARGS__})
#endif

// The sum, or the largest, of them.
template <typename Join>
float joined(Vector x, Join join) {
  x = join(x, SHUFFLED(x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
  x = join(x, SHUFFLED(x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
  x = join(x, SHUFFLED(x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
  x = join(x, SHUFFLED(x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14));
  return x[0];
}

inline Vector sum_of(Vector one, Vector other) { return one + other; }
inline Vector larger_of(Vector one, Vector other) { return one > other ? one : other; }

// -- the bits of dropout ----------------------------------------------------------------------------

struct Dropout {
  uint32_t keep_from;  // a lane that is as large is kept; 0: nothing is dropped
  float scale;
  uint32_t key[2];
  uint32_t call;
};

inline Dropout dropout(double p, int64_t key, int64_t call) {
  const uint64_t bits = uint64_t(key);
  return {uint32_t(std::lround(p * 65536)), float(1 / (1 - p)), {uint32_t(bits), uint32_t(bits >> 32)}, uint32_t(call)};
}

// Of eight rows, the `rows`-th such, and sixteen columns, from `column` on.
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
void philox(const Place (&at)[N], const Dropout& drop, Random (&found)[N]) {
  for (int n = 0; n < N; ++n) {
    Bits columns;
    for (uint32_t lane = 0; lane < LANES; ++lane) columns[lane] = at[n].column + lane;
    found[n] = {{columns, Bits{} + at[n].rows, Bits{} + at[n].place, Bits{} + drop.call}};
  }
  uint32_t key[2] = {drop.key[0], drop.key[1]};
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

// 0 or 1 / (1 - p), in sixteen columns of one of the eight rows.
inline Vector kept(const Random& random, int64_t row, const Dropout& drop) {
  const Bits bits = (random.words[row / 2] >> (row % 2 * 16)) & 0xffffu;
  return bits >= drop.keep_from ? Vector{} + drop.scale : Vector{};
}

}  // namespace
