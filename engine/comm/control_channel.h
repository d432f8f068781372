// How the ranks of a job find each other, agree, and notice that one of them is gone: small
// messages through rank 0. Never gradients.
//
// Every rank keeps one connection to rank 0 and a thread that sends heartbeats and listens. Rank 0
// watches all of them (see watchdog.h), the others watch rank 0. Whoever fails, or is found lost,
// aborts the job: the reason reaches all ranks, each of which ends with the same exit code. Where a
// rank's main thread does not come back from what it does, `last_resort` ends the process.

#ifndef QLORA_ENGINE_COMM_CONTROL_CHANNEL_H_
#define QLORA_ENGINE_COMM_CONTROL_CHANNEL_H_

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/comm/socket.h"
#include "engine/comm/watchdog.h"
#include "engine/comm/world.h"
#include "proto/control.pb.h"

namespace qlora::engine {

struct ControlOptions {
  // Seconds without a sign of life after which a rank is lost.
  double silence_seconds = 60;
  // How long the ranks wait for each other at the start.
  double join_seconds = 120;
  // Called, on the channel's thread, where the main thread has not left kGraceSeconds after an
  // abort; ends the process. None: nothing happens (ranks that are threads).
  std::function<void(const absl::Status&)> last_resort;
};

class ControlChannel {
 public:
  static constexpr double kGraceSeconds = 1.0;

  // Comes back when all ranks of `world` (two at least) are there. Bad job where they disagree on
  // how many they are or run different versions; peer lost where not all come in time, or the place
  // stays taken, or is another launch's. Those who have come learn why.
  static absl::StatusOr<std::unique_ptr<ControlChannel>> Join(const World& world,
                                                              const ControlOptions& options);
  // Says goodbye: a rank that leaves without it counts as lost.
  ~ControlChannel();

  int rank() const { return world_.rank; }
  int size() const { return world_.size; }
  // The ranks that run on this machine, in order.
  const std::vector<int>& local_ranks() const { return local_ranks_; }
  int local_size() const { return int(local_ranks_.size()); }
  // This one's place among them.
  int local_rank() const {
    return int(std::find(local_ranks_.begin(), local_ranks_.end(), rank()) - local_ranks_.begin());
  }

  // What every rank gives, by rank; all of them call it in the same order with the same `what`.
  // Some megabytes at most. The abort's status where the job is aborted meanwhile. Afterwards all
  // count their collectives alike, also where some have had more of them among each other.
  absl::StatusOr<std::vector<std::string>> AllGather(const std::string& what,
                                                     const std::string& mine);
  // What rank 0 gives.
  absl::StatusOr<std::string> FromFirst(const std::string& what, const std::string& mine);

  // Tells in which phase the main thread is; `detail` is for people.
  void Enter(Phase phase, const std::string& detail);
  // A collective of this name begins or has ended: back to the phase before.
  void BeginCollective(const std::string& name);
  void EndCollective();
  // A sign of life inside a phase or collective. Cheap; from any thread.
  void Progress() { progress_.fetch_add(1, std::memory_order_relaxed); }

  // Tells all ranks that this one was sent a signal to stop.
  void AskToStop(int signal);
  // The signal of the first rank that was heard of, 0 for none: not all hear of it at the same
  // time.
  int asked_to_stop() const { return asked_to_stop_.load(std::memory_order_relaxed); }

  // Ends the job on all ranks with this error, which has an exit code.
  void Abort(const absl::Status& error);
  // OK, or why the job was aborted.
  absl::Status status() const;
  bool aborted() const { return aborted_.load(std::memory_order_acquire); }
  // For who waits for other ranks, often: OK, or why they will not come. Aborts the job where one
  // of them has said goodbye.
  absl::Status CheckOthers();

 private:
  struct Peer {
    int rank = 0;
    Socket socket;
    std::string arrived;  // bytes of a message that is not whole yet
    bool left = false;    // has said goodbye, or is lost
    std::string where;    // " (host gpu7, process 1234)"; empty for rank 0
    Heartbeat beat;       // the last one
    std::mutex sending;
  };

  ControlChannel(const World& world, const ControlOptions& options);
  absl::Status WaitForAll();     // rank 0
  absl::Status AttachToFirst();  // the others
  absl::Status CheckHello(const proto::ControlMessage::Hello& hello) const;
  // Of a rank that is here already. Peer lost where the process that came before has ended.
  absl::Status CameTwice(const proto::ControlMessage::Hello& hello) const;
  // Tells a rank of another launch that this is not its place.
  void TurnAway(Socket* guest, const proto::ControlMessage::Hello& hello) const;
  void FindNeighbours(const std::vector<std::string>& machines);

  void Serve();
  void Receive(Peer* peer);
  void Handle(Peer* peer, const proto::ControlMessage& message);
  void TakePart(const proto::ControlMessage::Part& part);
  absl::Status Send(Peer* peer, const proto::ControlMessage& message, double seconds);
  void SendToAll(const proto::ControlMessage& message, double seconds);
  void SendHeartbeats(double seconds);  // to all of them together
  void CheckSilence();
  void Lost(const std::string& reason);
  // False where it was aborted before.
  bool SetAborted(int exit_code, const std::string& reason);
  Heartbeat Beat() const;

  const World world_;
  const ControlOptions options_;
  std::vector<int> local_ranks_;
  std::vector<std::unique_ptr<Peer>> peers_;  // rank 0: all others; others: rank 0

  std::atomic<int64_t> progress_{0};
  std::atomic<int> asked_to_stop_{0};
  std::atomic<bool> aborted_{false};
  std::atomic<bool> others_left_{false};
  // Guards what follows, up to open_. The standard's, not Abseil's: Debian builds that without what
  // the thread sanitizer looks for.
  mutable std::mutex mutex_;
  std::condition_variable changed_;  // open_, status_ or others_left_
  Heartbeat beat_;
  std::vector<Heartbeat> outer_;  // phases that collectives interrupt
  absl::Status status_;
  bool leaving_ = false;
  int64_t agreements_ = 0;
  // By agreement. On rank 0 the contributions that have arrived; on the others the result, and the
  // collective's number on rank 0.
  struct Agreement {
    std::vector<proto::ControlMessage::Part> parts;
    std::vector<std::string> result;
    int64_t collective = 0;
  };
  absl::flat_hash_map<int64_t, Agreement> open_;

  std::unique_ptr<Watchdog> watchdog_;  // of the service thread
  Socket wake_;                         // an eventfd
  std::thread service_;
};

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_COMM_CONTROL_CHANNEL_H_
