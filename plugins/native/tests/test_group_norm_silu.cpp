// GroupNormSilu against the formula in double precision, by one thread and by teams.
#include "../group_norm_silu.h"

#include <limits>
#include <vector>

#include "check.h"
#include "threads.h"

using namespace diffplugin;
using namespace diffplugin::tests;

namespace {

struct Case {
    GroupNorm norm;
    double mean = 0, deviation = 1;
    char const* what = "";
};

std::string told(Case const& one, int team) {
    GroupNorm const& n = one.norm;
    return std::string(one.what) + " " + std::to_string(n.batch) + "x" + std::to_string(n.channels) + "x" +
           std::to_string(n.area) + ", " + std::to_string(n.groups) + " groups, " + std::to_string(n.slices) +
           " slices, team of " + std::to_string(team);
}

template <class T>
struct Tensors {
    std::vector<T> x, y, scale, bias;
};

template <class T>
Tensors<T> drawn(Case const& one) {
    std::mt19937 random(7);
    std::normal_distribution<double> values(one.mean, one.deviation), unit;
    Tensors<T> made;
    auto const count = static_cast<std::size_t>(one.norm.batch * one.norm.channels * one.norm.area);
    made.y.resize(count);
    for (std::size_t i = 0; i < count; ++i) {
        made.x.push_back(narrow<T>(static_cast<float>(values(random))));
    }
    for (std::int64_t c = 0; c < one.norm.channels; ++c) {
        made.scale.push_back(narrow<T>(static_cast<float>(unit(random))));
        made.bias.push_back(narrow<T>(static_cast<float>(unit(random))));
    }
    return made;
}

// The formula, one value at a time.
template <class T>
std::vector<double> reference(GroupNorm const& norm, Tensors<T> const& t) {
    std::vector<double> made(t.x.size());
    std::int64_t const length = norm.length();
    for (std::int64_t index = 0; index < norm.batch * norm.groups; ++index) {
        double mean = 0, variance = 0;
        auto const x = [&](std::int64_t i) { return static_cast<double>(to_float(t.x[index * length + i])); };
        for (std::int64_t i = 0; i < length; ++i) mean += x(i) / static_cast<double>(length);
        for (std::int64_t i = 0; i < length; ++i) variance += std::pow(x(i) - mean, 2) / static_cast<double>(length);
        for (std::int64_t i = 0; i < length; ++i) {
            std::int64_t const at = index * length + i, channel = at / norm.area % norm.channels;
            double const normal = (x(i) - mean) / std::sqrt(variance + norm.epsilon);
            double const value = normal * to_float(t.scale[channel]) + to_float(t.bias[channel]);
            made[at] = value / (1 + std::exp(-value));
        }
    }
    return made;
}

template <class T>
void run(GroupNorm const& norm, Tensors<T>& t, int team_size) {
    std::vector<Moments> moments(static_cast<std::size_t>(norm.batch * norm.groups * norm.slices));
    auto const each = [&](auto&& work) {
        for (std::int64_t index = 0; index < norm.batch * norm.groups; ++index) {
            for (std::int32_t slice = 0; slice < norm.slices; ++slice) {
                if (team_size == 1) {
                    Lone lone;
                    work(lone, index, slice);
                } else {
                    together(team_size, [&](Member& member) { work(member, index, slice); });
                }
            }
        }
    };
    each([&](auto& team, std::int64_t index, std::int32_t slice) {
        Moments const found = slice_moments(team, norm, t.x.data(), index, slice);
        if (team.rank() == 0) moments[index * norm.slices + slice] = found;
    });
    if (norm.length() == 0) return;  // as launch.cu
    each([&](auto& team, std::int64_t index, std::int32_t slice) {
        slice_values(team, norm, moments.data(), t.x.data(), t.scale.data(), t.bias.data(), t.y.data(), index, slice);
    });
}

template <class T>
void meets_the_formula(Case const& one, int team, double bound) {
    Tensors<T> tensors = drawn<T>(one);
    run(one.norm, tensors, team);
    std::vector<double> const expected = reference(one.norm, tensors);
    for (std::size_t i = 0; i < expected.size(); ++i) {
        near(to_float(tensors.y[i]), expected[i], 1 + std::abs(expected[i]), bound,
             told(one, team) + ", value " + std::to_string(i));
        if (faults > 20) return;
    }
}

constexpr double kFloat = 2e-6, kHalf = 1e-3;  // half: its own rounding of the result is 2^-11

void shapes() {
    std::vector<Case> const cases = {
        {{1, 32, 64, 32, 1, 1e-5f}, 0, 1, "one channel a group"},
        {{2, 6, 35, 3, 3, 1e-5f}, 0, 1, "odd sides"},
        {{1, 7, 13, 7, 4, 1e-6f}, 0, 1, "odd everything"},
        {{3, 8, 1, 2, 5, 1e-5f}, 0, 1, "more slices than values"},
        {{1, 4, 1, 4, 1, 1e-5f}, 0, 1, "groups of one value"},
        {{1, 2, 33 * 31, 1, 8, 1e-5f}, 0, 1, "one group"},
        {{1, 320, 15 * 17, 32, 2, 1e-5f}, 0, 1, "a UNet's"},
    };
    for (Case const& one : cases) {
        for (int team : {1, 4}) {
            meets_the_formula<float>(one, team, kFloat);
            meets_the_formula<Half>(one, team, kHalf);
        }
    }
}

void extremes() {
    // x - mean loses what float cannot hold of x itself: 2^-24 of the mean against the deviation
    meets_the_formula<float>({{1, 4, 1001, 2, 3, 1e-5f}, 1000, 1, "far from zero"}, 4, 2e-4);
    meets_the_formula<float>({{1, 4, 1001, 2, 3, 1e-5f}, 0, 1e12, "large floats"}, 4, kFloat);
    meets_the_formula<float>({{1, 4, 1001, 2, 3, 1e-5f}, 0, 1e-12, "small floats"}, 4, kFloat);
    meets_the_formula<Half>({{1, 4, 4001, 2, 3, 1e-5f}, 0, 16000, "near half's largest"}, 4, kHalf);
    meets_the_formula<Half>({{1, 4, 4001, 2, 3, 1e-5f}, 60000, 1000, "high halves"}, 4, kHalf);
    meets_the_formula<Half>({{1, 4, 4001, 2, 3, 1e-5f}, 0, 1e-6, "subnormal halves"}, 4, kHalf);
    meets_the_formula<float>({{1, 4, 64, 2, 2, 1e-5f}, 3, 0, "constant"}, 2, kFloat);
}

void nothing_of_nothing() {
    Tensors<float> none;
    run({0, 4, 16, 2, 2, 1e-5f}, none, 2);
    run({2, 4, 0, 2, 2, 1e-5f}, none, 2);
    check(none.y.empty(), "an empty tensor stays empty");
}

void a_bad_value_spoils_its_group_alone() {
    for (float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
        Case const one{{1, 4, 9, 2, 2, 1e-5f}, 0, 1, "bad value"};
        Tensors<float> t = drawn<float>(one);
        t.x[5] = bad;
        run(one.norm, t, 2);
        for (std::size_t i = 0; i < t.y.size(); ++i) {
            check(std::isfinite(t.y[i]) == (i >= t.y.size() / 2), "a bad value at 5 shows at " + std::to_string(i));
        }
    }
}

void the_size_of_the_team_changes_nothing_but_rounding() {
    Case const one{{1, 8, 77, 4, 3, 1e-5f}, 0, 1, "teams"};
    Tensors<Half> alone = drawn<Half>(one), many = alone, again = alone;
    run(one.norm, alone, 1);
    run(one.norm, many, 4);
    run(one.norm, again, 4);
    for (std::size_t i = 0; i < alone.y.size(); ++i) {
        double const one = to_float(alone.y[i]);
        near(to_float(many.y[i]), one, 1 + std::abs(one), kHalf, "team of 4 and of 1");
        check(many.y[i].bits == again.y[i].bits, "the same team gives the same bits");
    }
}

}  // namespace

int main() {
    shapes();
    extremes();
    nothing_of_nothing();
    a_bad_value_spoils_its_group_alone();
    the_size_of_the_team_changes_nothing_but_rounding();
    return verdict("group_norm_silu");
}
