// IEEE 754 binary16 for the host and the device: storage and conversions; arithmetic is done in float.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#include <cuda_fp16.h>
#define DP_BOTH __host__ __device__ inline
#else
#define DP_BOTH inline
#endif

namespace diffplugin {

struct Half {
    std::uint16_t bits;
};

// The value of a half; NaN stays NaN.
DP_BOTH float to_float(Half half) {
#ifdef __CUDA_ARCH__
    return __half2float(__ushort_as_half(half.bits));
#else
    std::uint32_t const sign = (half.bits & 0x8000u) << 16;
    std::uint32_t const exponent = (half.bits >> 10) & 0x1Fu, fraction = half.bits & 0x3FFu;
    if (exponent == 0) {  // zero and subnormals: multiples of 2^-24, all of them floats
        float const size = static_cast<float>(fraction) * 0x1p-24f;
        return sign != 0 ? -size : size;
    }
    std::uint32_t const wide = exponent == 0x1F ? 0xFFu : exponent + (127 - 15);
    std::uint32_t const bits = sign | (wide << 23) | (fraction << 13);
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
#endif
}

DP_BOTH float to_float(float value) { return value; }

// The nearest half, ties to even; infinity where the value is beyond 65504 by half a step or more.
DP_BOTH Half to_half(float value) {
#ifdef __CUDA_ARCH__
    return {__half_as_ushort(__float2half_rn(value))};
#else
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    std::uint32_t const sign = (bits >> 16) & 0x8000u, size = bits & 0x7FFFFFFFu;
    if (size >= 0x7F800000u) {  // infinity, or NaN made quiet
        return {static_cast<std::uint16_t>(sign | (size > 0x7F800000u ? 0x7E00u : 0x7C00u))};
    }
    if (size < 0x38800000u) {  // below 2^-14: a multiple of 2^-24; adding 0.5 lets float's own rounding do it
        float rounded;
        std::memcpy(&rounded, &size, sizeof rounded);
        rounded += 0.5f;
        std::uint32_t steps;
        std::memcpy(&steps, &rounded, sizeof steps);
        return {static_cast<std::uint16_t>(sign | (steps - 0x3F000000u))};
    }
    std::uint32_t const even = (size >> 13) & 1u;
    std::uint32_t const rounded = (size - ((127u - 15u) << 23) + 0xFFFu + even) >> 13;
    return {static_cast<std::uint16_t>(sign | (rounded < 0x7C00u ? rounded : 0x7C00u))};
#endif
}

// float -> T, T being float or Half.
template <class T>
DP_BOTH T narrow(float value);

template <>
DP_BOTH float narrow<float>(float value) {
    return value;
}

template <>
DP_BOTH Half narrow<Half>(float value) {
    return to_half(value);
}

}  // namespace diffplugin
