// The kernels as calls on a CUDA stream. Nothing is allocated and nothing waits, so all of it can be captured.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "group_norm_silu.h"

namespace diffplugin {

enum class Value { kFloat, kHalf };

// The operator on x [batch, channels, area], cut into enough slices to fill a GPU at batch 1.
GroupNorm group_norm(std::int64_t batch, std::int64_t channels, std::int64_t area, std::int32_t groups, float epsilon);

// Bytes of workspace that group_norm_silu needs.
std::size_t workspace_bytes(GroupNorm const& norm);

// Device pointers to `value`s. cudaErrorInvalidValue: the groups do not divide the channels, or one of them
// has 2^30 values or more; else the launch's error.
cudaError_t group_norm_silu(GroupNorm const& norm, Value value, void const* x, void const* scale, void const* bias,
                            void* y, void* workspace, cudaStream_t stream);

}  // namespace diffplugin
