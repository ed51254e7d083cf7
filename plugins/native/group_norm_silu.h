// GroupNormSilu: y = silu(group_norm(x) * scale + bias), silu(v) = v / (1 + exp(-v)); arXiv:1803.08494, 1606.08415.
//
// x, y [batch, channels, area], row by row, scale, bias [channels], all in float or all in half; statistics in float. A
// group has fewer than 2^30 values.
// A group's values lie side by side, so a group is cut into slices that teams take: first every slice's moments, then,
// from the moments of all slices of a group, its values. The variance is taken about the mean, never as a difference
// of large sums: a mean far from zero costs no digits.
#pragma once

#include <cmath>

#include "team.h"

namespace diffplugin {

struct GroupNorm {
    std::int64_t batch, channels, area;
    std::int32_t groups, slices;
    float epsilon;

    DP_BOTH std::int64_t length() const { return channels / groups * area; }  // values of one group
    DP_BOTH std::int32_t begin(std::int32_t slice) const {
        return static_cast<std::int32_t>(length() * slice / slices);
    }
};

struct Moments {
    float count, mean, squares;  // squares: sum of (x - mean)^2
};

// Moments of one slice of group `index` of batch * groups.
template <class T, class Team>
DP_BOTH Moments slice_moments(Team& team, GroupNorm const& norm, T const* x, std::int64_t index, std::int32_t slice) {
    T const* const values = x + index * norm.length();
    std::int32_t const begin = norm.begin(slice), end = norm.begin(slice + 1);
    float const count = static_cast<float>(end - begin);
    float total = 0;
    for (std::int32_t i = begin + team.rank(); i < end; i += team.size()) {
        total += to_float(values[i]);
    }
    float const mean = count > 0 ? sum(team, total) / count : 0;
    float squares = 0;
    for (std::int32_t i = begin + team.rank(); i < end; i += team.size()) {
        float const off = to_float(values[i]) - mean;
        squares += off * off;
    }
    return {count, mean, sum(team, squares)};
}

// Moments of two disjoint sets together; Chan, Golub, LeVeque 1979.
DP_BOTH Moments merged(Moments const& a, Moments const& b) {
    float const count = a.count + b.count;
    if (count == 0) {
        return a;
    }
    float const apart = b.mean - a.mean, share = b.count / count;
    return {count, a.mean + apart * share, a.squares + b.squares + apart * apart * a.count * share};
}

// One slice of the result. `moments` [batch * groups, slices], every slice's.
template <class T, class Team>
DP_BOTH void slice_values(Team& team, GroupNorm const& norm, Moments const* moments, T const* x, T const* scale,
                          T const* bias, T* y, std::int64_t index, std::int32_t slice) {
    Moments all = moments[index * norm.slices];
    for (std::int32_t i = 1; i < norm.slices; ++i) {
        all = merged(all, moments[index * norm.slices + i]);
    }
    float const inverse = 1 / std::sqrt(all.squares / all.count + norm.epsilon);
    auto const first = static_cast<std::int32_t>(index % norm.groups * (norm.channels / norm.groups));
    auto const area = static_cast<std::int32_t>(norm.area), end = norm.begin(slice + 1);
    T const* const from = x + index * norm.length();
    T* const to = y + index * norm.length();
    for (std::int32_t i = norm.begin(slice) + team.rank(); i < end; i += team.size()) {
        std::int32_t const channel = first + i / area;
        float const normal = (to_float(from[i]) - all.mean) * inverse;
        float const value = normal * to_float(scale[channel]) + to_float(bias[channel]);
        to[i] = narrow<T>(value / (1 + std::exp(-value)));
    }
}

}  // namespace diffplugin
