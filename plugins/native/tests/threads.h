// A team of host threads: the device's code with its barriers and its shared scratch, under sanitizers.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace diffplugin::tests {

class Gate {
public:
    explicit Gate(int members) : members_(members) {}

    void pass() {
        std::unique_lock lock(mutex_);
        int const turn = turn_;
        if (++waiting_ == members_) {
            waiting_ = 0;
            ++turn_;
            all_here_.notify_all();
        } else {
            all_here_.wait(lock, [&] { return turn_ != turn; });
        }
    }

private:
    std::mutex mutex_;
    std::condition_variable all_here_;
    int members_, waiting_ = 0, turn_ = 0;
};

struct Member {
    int rank_, size_;
    float* scratch_;
    Gate* gate;
    int rank() const { return rank_; }
    int size() const { return size_; }
    float* scratch() const { return scratch_; }
    void barrier() const { gate->pass(); }
};

// Runs `work` on every member of a team of `size` (a power of two) at once.
inline void together(int size, std::function<void(Member&)> const& work) {
    std::vector<float> scratch(static_cast<std::size_t>(size));
    Gate gate(size);
    std::vector<std::thread> threads;
    for (int rank = 0; rank < size; ++rank) {
        threads.emplace_back([&, rank] {
            Member member{rank, size, scratch.data(), &gate};
            work(member);
        });
    }
    for (auto& thread : threads) {
        thread.join();
    }
}

}  // namespace diffplugin::tests
