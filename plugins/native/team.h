// A team of threads that work on one piece together. A kernel is written once over a Team:
//
//     int rank();  int size();   // size: a power of two
//     float* scratch();          // size() floats that the whole team sees
//     void barrier();            // nobody passes before all have come
//
// On the device it is a thread block (launch.cu); on the host one thread (Lone), or several (tests/threads.h).
#pragma once

#include "half.h"

namespace diffplugin {

struct Lone {
    float cell = 0;
    DP_BOTH int rank() const { return 0; }
    DP_BOTH int size() const { return 1; }
    DP_BOTH float* scratch() { return &cell; }
    DP_BOTH void barrier() {}
};

// Sum of every member's value, the same for all of them. As a tree: the order does not depend on timing.
template <class Team>
DP_BOTH float sum(Team& team, float value) {
    float* const scratch = team.scratch();
    scratch[team.rank()] = value;
    team.barrier();
    for (int half = team.size() / 2; half > 0; half /= 2) {
        if (team.rank() < half) {
            scratch[team.rank()] += scratch[team.rank() + half];
        }
        team.barrier();
    }
    float const total = scratch[0];
    team.barrier();  // before anybody writes into the scratch again
    return total;
}

}  // namespace diffplugin
