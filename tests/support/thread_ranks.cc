#include "tests/support/thread_ranks.h"

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace qlora::tests {
namespace {

// Messages on their way, by sender and receiver.
class Mailboxes {
 public:
  void Put(int from, int to, const void* bytes, int64_t count) {
    std::lock_guard lock(mutex_);
    boxes_[{from, to}].emplace_back(static_cast<const char*>(bytes), size_t(count));
    filled_.notify_all();
  }
  // False where nothing came for a while.
  bool Take(int from, int to, void* bytes, int64_t count) {
    std::unique_lock lock(mutex_);
    std::deque<std::string>& box = boxes_[{from, to}];
    if (!filled_.wait_for(lock, std::chrono::milliseconds(20), [&] { return !box.empty(); })) {
      return false;
    }
    if (int64_t(box.front().size()) != count) std::abort();  // the ranks are out of step
    std::memcpy(bytes, box.front().data(), size_t(count));
    box.pop_front();
    return true;
  }

 private:
  std::mutex mutex_;
  std::condition_variable filled_;
  std::map<std::pair<int, int>, std::deque<std::string>> boxes_;
};

class ThreadLink : public engine::HostLink {
 public:
  ThreadLink(Mailboxes* boxes, engine::ControlChannel* control)
      : boxes_(*boxes), control_(*control) {}
  absl::Status Exchange(int to, const void* send, int64_t send_bytes, int from, void* receive,
                        int64_t receive_bytes) override {
    if (to >= 0) boxes_.Put(control_.rank(), to, send, send_bytes);
    while (from >= 0 && !boxes_.Take(from, control_.rank(), receive, receive_bytes)) {
      if (absl::Status s = control_.CheckOthers(); !s.ok()) return s;
    }
    return absl::OkStatus();
  }

 private:
  Mailboxes& boxes_;
  engine::ControlChannel& control_;
};

void Require(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::abort();
}

}  // namespace

std::string NewRendezvous() {
  static std::atomic<int> count{0};
  return absl::StrCat("@qlora_test-", getpid(), "-", ++count);
}

void OnRanks(int size, const engine::ControlOptions& options,
             const std::function<std::unique_ptr<kernels::Device>(int rank)>& device,
             const std::function<void(engine::Ranks& ranks, kernels::Device* device)>& body) {
  Mailboxes boxes;
  const std::string rendezvous = NewRendezvous();
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      const std::unique_ptr<kernels::Device> own = device ? device(rank) : nullptr;
      auto ranks = engine::Ranks::Join({rank, size, rendezvous}, options);
      Require(ranks.status());
      if (own != nullptr) {
        Require((*ranks)->OpenComm(
            own.get(), [&]() -> absl::StatusOr<std::unique_ptr<engine::HostLink>> {
              return std::make_unique<ThreadLink>(&boxes, &(*ranks)->control());
            }));
      }
      body(**ranks, own.get());
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace qlora::tests
