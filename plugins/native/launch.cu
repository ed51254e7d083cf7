#include "launch.h"

#include <algorithm>

namespace diffplugin {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kSliceValues = 4096;
constexpr std::int64_t kMostSlices = 64;

struct Block {
    float* cells;
    __device__ int rank() const { return static_cast<int>(threadIdx.x); }
    __device__ int size() const { return kThreads; }
    __device__ float* scratch() const { return cells; }
    __device__ void barrier() const { __syncthreads(); }
};

template <class T>
__global__ void __launch_bounds__(kThreads) moments_kernel(GroupNorm norm, T const* x, Moments* moments) {
    __shared__ float cells[kThreads];
    Block block{cells};
    std::int64_t const index = blockIdx.x / norm.slices;
    auto const slice = static_cast<std::int32_t>(blockIdx.x % norm.slices);
    Moments const found = slice_moments(block, norm, x, index, slice);
    if (threadIdx.x == 0) {
        moments[blockIdx.x] = found;
    }
}

template <class T>
__global__ void __launch_bounds__(kThreads) values_kernel(GroupNorm norm, Moments const* moments, T const* x,
                                                          T const* scale, T const* bias, T* y) {
    Block block{nullptr};
    std::int64_t const index = blockIdx.x / norm.slices;
    auto const slice = static_cast<std::int32_t>(blockIdx.x % norm.slices);
    slice_values(block, norm, moments, x, scale, bias, y, index, slice);
}

template <class T>
cudaError_t launch(GroupNorm const& norm, void const* x, void const* scale, void const* bias, void* y, Moments* moments,
                   cudaStream_t stream) {
    auto const blocks = static_cast<unsigned>(norm.batch * norm.groups * norm.slices);
    auto const* const from = static_cast<T const*>(x);
    moments_kernel<<<blocks, kThreads, 0, stream>>>(norm, from, moments);
    values_kernel<<<blocks, kThreads, 0, stream>>>(norm, moments, from, static_cast<T const*>(scale),
                                                   static_cast<T const*>(bias), static_cast<T*>(y));
    return cudaGetLastError();
}

}  // namespace

GroupNorm group_norm(std::int64_t batch, std::int64_t channels, std::int64_t area, std::int32_t groups, float epsilon) {
    std::int64_t const length = groups > 0 ? channels / groups * area : 0;
    std::int64_t const slices = std::clamp((length + kSliceValues - 1) / kSliceValues, std::int64_t{1}, kMostSlices);
    return {batch, channels, area, groups, static_cast<std::int32_t>(slices), epsilon};
}

std::size_t workspace_bytes(GroupNorm const& norm) {
    return static_cast<std::size_t>(norm.batch * norm.groups * norm.slices) * sizeof(Moments);
}

cudaError_t group_norm_silu(GroupNorm const& norm, Value value, void const* x, void const* scale, void const* bias,
                            void* y, void* workspace, cudaStream_t stream) {
    if (norm.groups <= 0 || norm.channels % norm.groups != 0 || norm.length() > 0x3FFFFFFF) {
        return cudaErrorInvalidValue;
    }
    if (norm.batch * norm.length() == 0) {
        return cudaSuccess;
    }
    auto* const moments = static_cast<Moments*>(workspace);
    return value == Value::kHalf ? launch<Half>(norm, x, scale, bias, y, moments, stream)
                                 : launch<float>(norm, x, scale, bias, y, moments, stream);
}

}  // namespace diffplugin
