// Element types and vector loads that g++, nvcc and NVRTC read alike. No includes: NVRTC then needs no include path.
//
// A device function marked HOST_DEVICE is compiled by g++ too, and that build is what the tests run.
#pragma once

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define HOST_DEVICE __host__ __device__ __forceinline__
#define RESTRICT __restrict__
#else
#define HOST_DEVICE inline
#define RESTRICT __restrict
#endif

namespace pose2seg {

// float16 and bfloat16 as their bits: the CUDA headers that define them do not exist for g++ and NVRTC.
struct half_t {
  unsigned short bits;
};
struct bfloat16_t {
  unsigned short bits;
};

// The type that arithmetic on T is done in.
template <typename T> struct arithmetic { using type = float; };
template <> struct arithmetic<double> { using type = double; };
template <typename T> using arithmetic_t = typename arithmetic<T>::type;

HOST_DEVICE unsigned float_bits(float value) {
#ifdef __CUDA_ARCH__
  return __float_as_uint(value);
#else
  unsigned bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
#endif
}

HOST_DEVICE float float_from_bits(unsigned bits) {
#ifdef __CUDA_ARCH__
  return __uint_as_float(bits);
#else
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

HOST_DEVICE float to_arithmetic(float value) { return value; }
HOST_DEVICE double to_arithmetic(double value) { return value; }

HOST_DEVICE float to_arithmetic(bfloat16_t value) { return float_from_bits((unsigned)value.bits << 16); }

HOST_DEVICE float to_arithmetic(half_t value) {
#ifdef __CUDA_ARCH__
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
#else
  const unsigned sign = (unsigned)(value.bits & 0x8000u) << 16;
  const unsigned exponent = (value.bits >> 10) & 31u, mantissa = value.bits & 1023u;
  if (exponent == 31) return float_from_bits(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0) return float_from_bits(sign | ((exponent + 112) << 23) | (mantissa << 13));
  const float subnormal = (float)mantissa * 5.9604644775390625e-8f;  // 2^-24
  return float_from_bits(sign | float_bits(subnormal));
#endif
}

// Rounded to nearest, ties to even, in every type.
template <typename T> HOST_DEVICE T from_arithmetic(arithmetic_t<T> value);
template <> HOST_DEVICE float from_arithmetic<float>(float value) { return value; }
template <> HOST_DEVICE double from_arithmetic<double>(double value) { return value; }

template <> HOST_DEVICE bfloat16_t from_arithmetic<bfloat16_t>(float value) {
  const unsigned bits = float_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {(unsigned short)((bits >> 16) | 0x40u)};  // NaN stays NaN
  return {(unsigned short)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

template <> HOST_DEVICE half_t from_arithmetic<half_t>(float value) {
#ifdef __CUDA_ARCH__
  half_t result;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
  return result;
#else
  const unsigned bits = float_bits(value), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {(unsigned short)(sign | 0x7e00u)};
  const int exponent = (int)(magnitude >> 23) - 112;
  unsigned mantissa = magnitude & 0x7fffffu;
  if (exponent >= 31) return {(unsigned short)(sign | 0x7c00u)};
  unsigned dropped = 13, kept = (unsigned)exponent << 10;  // bits of the mantissa that do not fit, exponent in place
  if (exponent <= 0) {
    if (exponent < -10) return {(unsigned short)sign};
    mantissa |= 0x800000u;
    dropped = (unsigned)(14 - exponent);
    kept = 0;
  }
  const unsigned quotient = kept + (mantissa >> dropped), rest = mantissa & ((1u << dropped) - 1u);
  const unsigned tie = 1u << (dropped - 1u);
  return {(unsigned short)(sign | (quotient + (rest > tie || (rest == tie && (quotient & 1u)))))};  // may carry up
#endif
}

// V neighbouring elements that move as one load or store of sizeof(T) * V bytes, which must be the alignment, too.
template <typename T, int V> struct alignas(sizeof(T) * V) vector_t {
  T lane[V];
};

// Elements of T in 16 bytes, the widest access of one thread.
template <typename T> struct widest {
  static constexpr int value = 16 / (int)sizeof(T);
};

}  // namespace pose2seg
