// Ranks as threads of one process: with the real control channel, and a link through memory.
#ifndef QLORA_TESTS_SUPPORT_THREAD_RANKS_H_
#define QLORA_TESTS_SUPPORT_THREAD_RANKS_H_

#include <functional>
#include <string>

#include "engine/comm/ranks.h"

namespace qlora::tests {

// Runs `body` on a thread for each of `size` ranks and waits for all of them. Where `device` makes
// one, its rank's Comm is open over it. Joining must succeed, or the test ends.
void OnRanks(int size, const engine::ControlOptions& options,
             const std::function<std::unique_ptr<kernels::Device>(int rank)>& device,
             const std::function<void(engine::Ranks& ranks, kernels::Device* device)>& body);

// A name for a rendezvous that nobody else has.
std::string NewRendezvous();

}  // namespace qlora::tests

#endif  // QLORA_TESTS_SUPPORT_THREAD_RANKS_H_
