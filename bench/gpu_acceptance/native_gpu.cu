// plugins/native's kernels on a GPU: against the formula in double precision, and their time against the bytes moved.
//
// nvcc -std=c++17 -O2 -arch=native -I DIR -o native_gpu DIR/native_gpu.cu DIR/launch.cu
//
// One line a case, with "ok" or "FAULT"; exit status 1 where there is a fault.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "launch.h"

using namespace diffplugin;

#define CHECK(call)                                                              \
    do {                                                                         \
        cudaError_t error = (call);                                              \
        if (error != cudaSuccess) {                                              \
            std::printf("FAULT %s: %s\n", #call, cudaGetErrorString(error));     \
            return 1;                                                            \
        }                                                                        \
    } while (0)

static float widened(std::uint16_t value) {
    int exponent = (value >> 10) & 31;
    float size = exponent ? std::ldexp(1.f + (value & 1023) / 1024.f, exponent - 15) : std::ldexp((value & 1023) / 1024.f, -14);
    return value >> 15 ? -size : size;
}

// Rounded to nearest; of values below 65504.
static std::uint16_t rounded(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, 4);
    std::uint32_t sign = (bits >> 16) & 0x8000, size = bits & 0x7fffffff;
    if (size < 0x38800000) return std::uint16_t(sign | std::uint32_t(std::lrintf(std::fabs(value) * 16777216.f)));
    size += 0xfff + ((size >> 13) & 1);
    return std::uint16_t(sign | ((size - 0x38000000) >> 13));
}

template <class T>
static float number(T value) {
    if constexpr (sizeof(T) == 2) return widened(std::uint16_t(value));
    else return value;
}
template <class T>
static T stored(float value) {
    if constexpr (sizeof(T) == 2) return T(rounded(value));
    else return value;
}

// Relative L2 error of silu(group_norm(x) * scale + bias), channels first.
template <class T>
static double error_of(std::vector<T> const& x, std::vector<T> const& scale, std::vector<T> const& bias,
                       std::vector<T> const& found, std::int64_t area, int groups) {
    std::int64_t members = std::int64_t(x.size()) / groups;
    double apart = 0, whole = 0;
    for (int group = 0; group < groups; ++group) {
        double mean = 0, variance = 0;
        for (std::int64_t i = 0; i < members; ++i) mean += number(x[group * members + i]);
        mean /= double(members);
        for (std::int64_t i = 0; i < members; ++i) {
            double centred = number(x[group * members + i]) - mean;
            variance += centred * centred;
        }
        variance /= double(members);
        for (std::int64_t i = 0; i < members; ++i) {
            std::int64_t at = group * members + i;
            double y = (number(x[at]) - mean) / std::sqrt(variance + 1e-5) * number(scale[at / area]) + number(bias[at / area]);
            y /= 1 + std::exp(-y);
            double off = number(found[at]) - y;
            apart += off * off, whole += y * y;
        }
    }
    return std::sqrt(apart / whole);
}

template <class T>
static int one(Value kind, std::int64_t channels, std::int64_t side, int groups, double mean, cudaStream_t stream) {
    std::int64_t area = side * side, count = channels * area, size = count * std::int64_t(sizeof(T));
    std::mt19937 engine(5);
    std::normal_distribution<float> normal(0, 1);
    std::vector<T> x(count), scale(channels), bias(channels), found(count);
    for (auto& value : x) value = stored<T>(float(mean) + normal(engine));
    for (auto& value : scale) value = stored<T>(normal(engine));
    for (auto& value : bias) value = stored<T>(normal(engine));
    GroupNorm norm = group_norm(1, channels, area, groups, 1e-5f);
    void *at_x, *at_scale, *at_bias, *at_y, *at_work;
    CHECK(cudaMalloc(&at_x, size));
    CHECK(cudaMalloc(&at_y, size));
    CHECK(cudaMalloc(&at_scale, channels * sizeof(T)));
    CHECK(cudaMalloc(&at_bias, channels * sizeof(T)));
    CHECK(cudaMalloc(&at_work, workspace_bytes(norm)));
    CHECK(cudaMemcpy(at_x, x.data(), size, cudaMemcpyHostToDevice));
    CHECK(cudaMemcpy(at_scale, scale.data(), channels * sizeof(T), cudaMemcpyHostToDevice));
    CHECK(cudaMemcpy(at_bias, bias.data(), channels * sizeof(T), cudaMemcpyHostToDevice));
    CHECK(cudaMemset(at_y, 0xff, size));  // not a number until it is written
    CHECK(group_norm_silu(norm, kind, at_x, at_scale, at_bias, at_y, at_work, stream));
    CHECK(cudaStreamSynchronize(stream));
    CHECK(cudaMemcpy(found.data(), at_y, size, cudaMemcpyDeviceToHost));
    double error = error_of(x, scale, bias, found, area, groups);
    bool fault = !(error < (sizeof(T) == 2 ? 1e-3 : 1e-5));

    constexpr int kRuns = 50, kLaunches = 10;
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < kRuns; ++i) CHECK(group_norm_silu(norm, kind, at_x, at_scale, at_bias, at_y, at_work, stream));
    CHECK(cudaStreamEndCapture(stream, &graph));
    CHECK(cudaGraphInstantiate(&executable, graph, 0));
    cudaEvent_t began, ended;
    CHECK(cudaEventCreate(&began));
    CHECK(cudaEventCreate(&ended));
    CHECK(cudaGraphLaunch(executable, stream));
    CHECK(cudaEventRecord(began, stream));
    for (int i = 0; i < kLaunches; ++i) CHECK(cudaGraphLaunch(executable, stream));
    CHECK(cudaEventRecord(ended, stream));
    CHECK(cudaEventSynchronize(ended));
    float ms;
    CHECK(cudaEventElapsedTime(&ms, began, ended));
    double us = ms * 1000 / (kRuns * kLaunches), gbs = 3.0 * double(size) / us / 1e3;  // read twice, written once
    std::printf("%s %lldx%lldx%lld, %d groups, mean %g: error %.1e %s, %.2f us, %.0f GB/s\n",
                sizeof(T) == 2 ? "float16" : "float32", (long long)channels, (long long)side, (long long)side, groups,
                mean, error, fault ? "FAULT" : "ok", us, gbs);
    for (void* at : {at_x, at_y, at_scale, at_bias, at_work}) CHECK(cudaFree(at));
    CHECK(cudaGraphExecDestroy(executable));
    CHECK(cudaGraphDestroy(graph));
    return fault;
}

int main() {
    cudaStream_t stream;
    CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    long long const cases[][3] = {{320, 64, 32}, {640, 64, 32}, {960, 64, 32},  {640, 32, 32}, {1280, 32, 32}, {1280, 16, 32},
                                  {2560, 16, 32}, {1280, 8, 32}, {512, 64, 32}, {128, 512, 32}, {48, 33, 4}};
    int faults = 0;
    for (auto& c : cases) faults += one<std::uint16_t>(Value::kHalf, c[0], c[1], int(c[2]), 0, stream);
    faults += one<float>(Value::kFloat, 320, 64, 32, 0, stream);
    faults += one<float>(Value::kFloat, 320, 64, 32, 1000, stream);
    faults += one<std::uint16_t>(Value::kHalf, 320, 64, 32, 20, stream);
    return faults != 0;
}
