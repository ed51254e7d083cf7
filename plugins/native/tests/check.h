// A test says what was wrong and where, counts it, and goes on.
#pragma once

#include <cmath>
#include <cstdio>
#include <random>
#include <string>

namespace diffplugin::tests {

inline int faults = 0;

inline void check(bool holds, std::string const& what) {
    if (!holds) {
        std::fprintf(stderr, "FAULT %s\n", what.c_str());
        ++faults;
    }
}

// found within `bound` of expected, as a share of `size`
inline void near(double found, double expected, double size, double bound, std::string const& what) {
    double const off = std::abs(found - expected) / size;
    check(off <= bound, what + ": " + std::to_string(found) + ", expected " + std::to_string(expected) + ", off by " +
                            std::to_string(off / bound) + " bounds");
}

inline int verdict(char const* name) {
    std::printf("%s: %s\n", name, faults == 0 ? "sound" : "faults");
    return faults == 0 ? 0 : 1;
}

}  // namespace diffplugin::tests
