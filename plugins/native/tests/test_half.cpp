// Half against the format's definition in double precision: every half, and floats around every rounding.
#include "../half.h"

#include <limits>

#include "check.h"

using namespace diffplugin;
using namespace diffplugin::tests;

namespace {

double defined(std::uint16_t bits) {
    int const exponent = (bits >> 10) & 0x1F, fraction = bits & 0x3FF;
    double const sign = (bits & 0x8000) != 0 ? -1 : 1;
    if (exponent == 31) {
        return fraction != 0 ? std::nan("") : sign * HUGE_VAL;
    }
    return sign * (exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25));
}

std::string shown(double value) {
    char text[64];
    std::snprintf(text, sizeof text, "%a", value);
    return text;
}

void every_half_is_what_the_format_says() {
    for (int bits = 0; bits < 0x10000; ++bits) {
        Half const half{static_cast<std::uint16_t>(bits)};
        double const expected = defined(half.bits), found = to_float(half);
        bool const nan = std::isnan(expected);
        check(nan ? std::isnan(found) : found == expected && std::signbit(found) == std::signbit(expected),
              "half " + std::to_string(bits) + " is " + shown(found) + ", expected " + shown(expected));
        Half const back = to_half(static_cast<float>(found));
        check(nan ? std::isnan(defined(back.bits)) : back.bits == half.bits,
              "half " + std::to_string(bits) + " comes back as " + std::to_string(back.bits));
    }
}

// Between neighbours: below the middle down, above it up, in the middle to the even one; and their negatives.
void rounding_is_to_nearest_even() {
    float const most = std::numeric_limits<float>::max();
    for (int bits = 0; bits < 0x7C00; ++bits) {
        auto const low = static_cast<std::uint16_t>(bits), high = static_cast<std::uint16_t>(bits + 1);
        double const above = high == 0x7C00 ? 65536 : defined(high);  // where the next half would be
        auto const middle = static_cast<float>((defined(low) + above) / 2);
        std::uint16_t const even = bits % 2 == 0 ? low : high;
        std::pair<float, std::uint16_t> const cases[] = {
            {std::nextafterf(middle, 0), low}, {middle, even}, {std::nextafterf(middle, most), high}};
        for (auto const& [value, expected] : cases) {
            check(to_half(value).bits == expected, shown(value) + " becomes " + std::to_string(to_half(value).bits) +
                                                       ", expected " + std::to_string(expected));
            check(to_half(-value).bits == (expected | 0x8000), shown(-value) + " has lost its sign or its value");
        }
    }
}

void what_is_beyond_the_format() {
    float const infinity = std::numeric_limits<float>::infinity(), tiny = std::numeric_limits<float>::denorm_min();
    check(to_half(infinity).bits == 0x7C00 && to_half(-infinity).bits == 0xFC00, "infinity stays");
    check(to_half(std::numeric_limits<float>::max()).bits == 0x7C00, "the largest float becomes infinity");
    check(to_half(65519.99f).bits == 0x7BFF && to_half(65520.0f).bits == 0x7C00, "the border of infinity");
    check(to_half(tiny).bits == 0 && to_half(-tiny).bits == 0x8000, "the smallest float becomes zero with its sign");
    check(std::isnan(to_float(to_half(std::numeric_limits<float>::quiet_NaN()))), "NaN stays");
    check(std::isnan(to_float(to_half(std::numeric_limits<float>::signaling_NaN()))), "signalling NaN stays NaN");
}

}  // namespace

int main() {
    every_half_is_what_the_format_says();
    rounding_is_to_nearest_even();
    what_is_beyond_the_format();
    return verdict("half");
}
