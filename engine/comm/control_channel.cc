#include "engine/comm/control_channel.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <fstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/comm/control_frame.h"
#include "engine/comm/now.h"
#include "engine/comm/reception.h"
#include "engine/version.h"
#include "kernels/start_thread.h"
#include "proto/errors.h"
#include "proto/exit_codes.h"

namespace qlora::engine {
namespace {

using proto::ControlMessage;

// How long rank 0 tries again where its place is taken: by the run before, perhaps.
constexpr double kListenSeconds = 10;
constexpr auto kListenPause = std::chrono::milliseconds(100);
// Heartbeats and notices are small: what does not take them at once is stopped or cut off.
constexpr double kNoticeSeconds = 1;
constexpr double kBeatsPerSilence = 6, kShortestBeat = 0.05, kLongestBeat = 5;
constexpr size_t kReadBytes = 1 << 16;

std::string HostName() {
  char name[256] = {};
  gethostname(name, sizeof(name) - 1);
  return name;
}

std::string Where() { return absl::StrCat("host ", HostName(), ", process ", getpid()); }

// Containers share a boot id, machines may share a name.
std::string Machine() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string boot;
  std::getline(file, boot);
  return absl::StrCat(HostName(), " ", boot);
}

absl::StatusOr<ControlMessage> ReceiveOne(Socket* socket, int64_t max_bytes, double seconds) {
  char header[kFrameHeader];
  if (absl::Status s = socket->Receive(header, kFrameHeader, seconds); !s.ok()) return s;
  absl::StatusOr<int64_t> length = MessageLength({header, kFrameHeader}, max_bytes);
  if (!length.ok()) return length.status();
  std::string body(*length, '\0');
  if (absl::Status s = socket->Receive(body.data(), *length, seconds); !s.ok()) return s;
  ControlMessage message;
  if (!message.ParseFromString(body)) return absl::DataLossError("a message can't be read");
  return message;
}

// Peer lost, which launchers start again, where the place stays taken; else it is no place of this
// machine: bad job.
absl::StatusOr<Socket> ListenPatiently(const std::string& rendezvous, double seconds) {
  const double deadline = Now() + seconds;
  absl::StatusOr<Socket> listener = Socket::Listen(rendezvous);
  while (absl::IsAlreadyExists(listener.status()) && Now() < deadline) {
    std::this_thread::sleep_for(kListenPause);
    listener = Socket::Listen(rendezvous);
  }
  if (listener.ok()) return listener;
  const std::string what =
      absl::StrCat("rank 0 can't wait for the others: ", listener.status().message());
  if (!absl::IsAlreadyExists(listener.status())) {
    return proto::BadJobError(
        absl::StrCat(what, ". Give another --rendezvous HOST:PORT, of this machine"));
  }
  return proto::PeerLostError(
      absl::StrCat(what, ", for ", seconds,
                   " s now: another program has it. Give another --rendezvous HOST:PORT, or the "
                   "same command when it is free"));
}

ControlMessage AbortMessage(int exit_code, absl::string_view reason) {
  ControlMessage message;
  message.mutable_abort()->set_exit_code(exit_code);
  message.mutable_abort()->set_reason(std::string(reason));
  return message;
}

}  // namespace

ControlChannel::ControlChannel(const World& world, const ControlOptions& options)
    : world_(world), options_(options) {}

absl::StatusOr<std::unique_ptr<ControlChannel>> ControlChannel::Join(
    const World& world, const ControlOptions& options) {
  std::unique_ptr<ControlChannel> channel(new ControlChannel(world, options));
  channel->wake_ = Socket(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  const absl::Status met = world.rank == 0 ? channel->WaitForAll() : channel->AttachToFirst();
  if (!met.ok()) {
    if (world.rank == 0) {
      channel->SendToAll(AbortMessage(proto::ExitCodeOf(met), met.message()), kNoticeSeconds);
    }
    return met;
  }
  absl::StatusOr<std::thread> service = kernels::StartThread(
      "the thread that listens to other ranks", [raw = channel.get()] { raw->Serve(); });
  if (!service.ok()) {
    // The others are there and would wait for this one.
    channel->SendToAll(
        AbortMessage(proto::ExitCodeOf(service.status()),
                     absl::StrCat("rank ", world.rank, ": ", service.status().message())),
        kNoticeSeconds);
    return service.status();
  }
  channel->service_ = *std::move(service);
  return channel;
}

absl::Status ControlChannel::WaitForAll() {
  const double deadline = Now() + options_.join_seconds;
  absl::StatusOr<Socket> listener =
      ListenPatiently(world_.rendezvous, std::min(kListenSeconds, options_.join_seconds));
  if (!listener.ok()) return listener.status();
  Reception reception(*std::move(listener));
  std::vector<std::string> machines(world_.size);
  machines[0] = Machine();
  while (int(peers_.size()) + 1 < world_.size) {
    absl::StatusOr<Reception::Guest> guest = reception.Next(std::max(0.0, deadline - Now()));
    if (!guest.ok()) {
      std::string missing;
      for (int rank = 1; rank < world_.size; ++rank) {
        if (machines[rank].empty()) absl::StrAppend(&missing, missing.empty() ? "" : ", ", rank);
      }
      return proto::PeerLostError(
          absl::StrCat("after ", options_.join_seconds,
                       " s these ranks have not reached rank 0 at ", world_.rendezvous, ": ",
                       missing, ". See their own output, and whether they can reach that address"));
    }
    const ControlMessage::Hello& hello = guest->hello;
    if (hello.launch() != world_.launch) {
      TurnAway(&guest->socket, hello);
      continue;
    }
    peers_.push_back(std::make_unique<Peer>());
    peers_.back()->socket = std::move(guest->socket);
    if (absl::Status s = CheckHello(hello); !s.ok()) return s;
    if (!machines[hello.rank()].empty()) return CameTwice(hello);
    peers_.back()->rank = hello.rank();
    peers_.back()->where = absl::StrCat(" (", hello.where(), ")");
    machines[hello.rank()] = hello.machine();
  }
  ControlMessage welcome;
  for (const std::string& machine : machines) welcome.mutable_welcome()->add_machines(machine);
  SendToAll(welcome, kHelloSeconds);
  FindNeighbours(machines);
  return absl::OkStatus();
}

absl::Status ControlChannel::CheckHello(const ControlMessage::Hello& hello) const {
  if (hello.version() != kEngineVersion) {
    return proto::BadJobError(absl::StrCat("rank ", hello.rank(), " (", hello.where(),
                                           ") runs version ", hello.version(), ", rank 0 version ",
                                           kEngineVersion, ": start the same program everywhere"));
  }
  if (hello.world() != world_.size || hello.rank() < 1 || hello.rank() >= world_.size) {
    return proto::BadJobError(absl::StrCat("rank ", hello.rank(), " (", hello.where(), ") counts ",
                                           hello.world(), " ranks, rank 0 counts ", world_.size));
  }
  return absl::OkStatus();
}

absl::Status ControlChannel::CameTwice(const ControlMessage::Hello& hello) const {
  const std::string who = absl::StrCat("rank ", hello.rank());
  for (const auto& peer : peers_) {
    if (peer->rank != hello.rank()) continue;
    // Who waits for the welcome says nothing, unless it is goodbye.
    char byte;
    const absl::StatusOr<int64_t> got = peer->socket.ReceiveSome(&byte, 1);
    if (!got.ok() || *got > 0) {
      return proto::PeerLostError(absl::StrCat(who, peer->where, " is gone, and came again as ",
                                               hello.where(), ". The same command tries again"));
    }
  }
  return proto::BadJobError(
      absl::StrCat("two processes call themselves ", who, ": ", hello.where()));
}

void ControlChannel::TurnAway(Socket* guest, const ControlMessage::Hello& hello) const {
  const auto name = [](const std::string& launch) {
    return launch.empty() ? "one by hand" : launch;
  };
  const ControlMessage message = AbortMessage(
      proto::kExitPeerLost,
      absl::StrCat("rank 0 at ", world_.rendezvous, " belongs to another launch (",
                   name(world_.launch), "), not to this one (", name(hello.launch()),
                   "). Give another --rendezvous HOST:PORT, or the same command when the place is "
                   "free"));
  guest->Send(EncodeFrame(message), kNoticeSeconds).IgnoreError();
}

absl::Status ControlChannel::AttachToFirst() {
  const auto lost = [&](const absl::Status& status) {
    return proto::PeerLostError(absl::StrCat("rank ", world_.rank, " can't reach rank 0 at ",
                                             world_.rendezvous, ": ", status.message()));
  };
  absl::StatusOr<Socket> socket = Socket::Connect(world_.rendezvous, options_.join_seconds);
  if (absl::IsInvalidArgument(socket.status())) {
    return proto::BadJobError(absl::StrCat("--rendezvous: ", socket.status().message()));
  }
  if (!socket.ok()) return lost(socket.status());
  peers_.push_back(std::make_unique<Peer>());
  Peer* const first = peers_.back().get();
  first->socket = *std::move(socket);
  ControlMessage message;
  ControlMessage::Hello* hello = message.mutable_hello();
  hello->set_version(kEngineVersion);
  hello->set_world(world_.size);
  hello->set_rank(world_.rank);
  hello->set_machine(Machine());
  hello->set_where(Where());
  hello->set_launch(world_.launch);
  if (absl::Status s = Send(first, message, kHelloSeconds); !s.ok()) return lost(s);
  // Rank 0 waits for the last rank as long, and began before.
  absl::StatusOr<ControlMessage> answer =
      ReceiveOne(&first->socket, kMaxControlMessage, options_.join_seconds + kHelloSeconds);
  if (!answer.ok()) return lost(answer.status());
  if (answer->has_abort()) {
    return proto::ErrorOfExitCode(answer->abort().exit_code(), answer->abort().reason());
  }
  const auto& machines = answer->welcome().machines();
  if (machines.size() != world_.size) return lost(absl::DataLossError("it is no rank 0"));
  FindNeighbours({machines.begin(), machines.end()});
  return absl::OkStatus();
}

void ControlChannel::FindNeighbours(const std::vector<std::string>& machines) {
  for (int rank = 0; rank < world_.size; ++rank) {
    if (machines[rank] == machines[world_.rank]) local_ranks_.push_back(rank);
  }
}

ControlChannel::~ControlChannel() {
  {
    std::lock_guard lock(mutex_);
    leaving_ = true;
  }
  if (service_.joinable()) {
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t n = write(wake_.fd(), &one, sizeof(one));
    service_.join();
  }
  ControlMessage goodbye;
  goodbye.mutable_goodbye();
  SendToAll(goodbye, kNoticeSeconds);
}

absl::Status ControlChannel::Send(Peer* peer, const ControlMessage& message, double seconds) {
  std::lock_guard lock(peer->sending);
  return peer->socket.Send(EncodeFrame(message), seconds);
}

void ControlChannel::SendToAll(const ControlMessage& message, double seconds) {
  // Who can't be reached is found silent, or its connection closed, by the service thread.
  for (const auto& peer : peers_) Send(peer.get(), message, seconds).IgnoreError();
}

absl::StatusOr<std::vector<std::string>> ControlChannel::AllGather(const std::string& what,
                                                                   const std::string& mine) {
  BeginCollective(what);
  ControlMessage message;
  ControlMessage::Part* part = message.mutable_part();
  part->set_what(what);
  part->set_contents(mine);
  int64_t number;
  {
    std::lock_guard lock(mutex_);
    number = agreements_++;
  }
  part->set_agreement(number);
  part->set_rank(world_.rank);
  if (world_.rank == 0) {
    TakePart(*part);
  } else {
    Send(peers_[0].get(), message, options_.silence_seconds).IgnoreError();
  }
  ControlMessage agreed;
  std::vector<std::string> result;
  {
    std::unique_lock lock(mutex_);
    const auto is_there = [&] {
      const Agreement& a = open_[number];
      return world_.rank == 0 ? int(a.parts.size()) == world_.size : !a.result.empty();
    };
    changed_.wait(lock, [&] { return is_there() || !status_.ok() || others_left_; });
    if (!is_there()) {
      lock.unlock();
      return CheckOthers();
    }
    Agreement& agreement = open_[number];
    result = std::move(agreement.result);
    if (world_.rank == 0) {
      result.resize(world_.size);
      for (ControlMessage::Part& p : agreement.parts) {
        result[std::clamp(p.rank(), 0, world_.size - 1)] = std::move(*p.mutable_contents());
      }
      agreed.mutable_agreed()->set_collective(beat_.collective);
    } else {
      beat_.collective = agreement.collective;
    }
    open_.erase(number);
  }
  if (world_.rank == 0) {
    agreed.mutable_agreed()->set_agreement(number);
    for (const std::string& contents : result) agreed.mutable_agreed()->add_contents(contents);
    SendToAll(agreed, options_.silence_seconds);
  }
  EndCollective();
  return result;
}

absl::StatusOr<std::string> ControlChannel::FromFirst(const std::string& what,
                                                      const std::string& mine) {
  absl::StatusOr<std::vector<std::string>> all = AllGather(what, world_.rank == 0 ? mine : "");
  if (!all.ok()) return all.status();
  return std::move((*all)[0]);
}

void ControlChannel::Enter(Phase phase, const std::string& detail) {
  std::lock_guard lock(mutex_);
  Progress();
  beat_.phase = phase;
  beat_.detail = detail;
}

void ControlChannel::BeginCollective(const std::string& name) {
  std::lock_guard lock(mutex_);
  Progress();
  outer_.push_back(beat_);
  beat_.phase = Phase::kCollective;
  beat_.detail = name;
  ++beat_.collective;
}

void ControlChannel::EndCollective() {
  std::lock_guard lock(mutex_);
  Progress();
  beat_.phase = outer_.back().phase;
  beat_.detail = outer_.back().detail;
  outer_.pop_back();
}

Heartbeat ControlChannel::Beat() const {
  std::lock_guard lock(mutex_);
  Heartbeat beat = beat_;
  beat.progress = progress_.load(std::memory_order_relaxed);
  return beat;
}

absl::Status ControlChannel::status() const {
  std::lock_guard lock(mutex_);
  return status_;
}

absl::Status ControlChannel::CheckOthers() {
  if (!aborted() && others_left_) Lost("another rank has ended before its work was done");
  return aborted() ? status() : absl::OkStatus();
}

void ControlChannel::AskToStop(int signal) {
  int none = 0;
  if (!asked_to_stop_.compare_exchange_strong(none, signal)) return;
  ControlMessage message;
  message.mutable_stop()->set_signal(signal);
  SendToAll(message, kNoticeSeconds);
}

bool ControlChannel::SetAborted(int exit_code, const std::string& reason) {
  std::lock_guard lock(mutex_);
  if (!status_.ok()) return false;
  status_ = proto::ErrorOfExitCode(exit_code, reason);
  aborted_.store(true, std::memory_order_release);
  changed_.notify_all();
  return true;
}

void ControlChannel::Abort(const absl::Status& error) {
  const int exit_code = proto::ExitCodeOf(error);
  const std::string reason =
      absl::StrCat("rank ", world_.rank, " (", Where(), ") gave up: ", error.message());
  if (SetAborted(exit_code, reason)) SendToAll(AbortMessage(exit_code, reason), kNoticeSeconds);
}

void ControlChannel::Lost(const std::string& reason) {
  const std::string text = absl::StrCat(
      reason,
      ". Nothing is lost but the steps since the last checkpoint; the same command goes on "
      "from there");
  if (SetAborted(proto::kExitPeerLost, text)) {
    SendToAll(AbortMessage(proto::kExitPeerLost, text), kNoticeSeconds);
  }
}

void ControlChannel::Serve() {
  const double interval =
      std::clamp(options_.silence_seconds / kBeatsPerSilence, kShortestBeat, kLongestBeat);
  double awake = Now(), next_beat = 0, aborted_at = 0;
  watchdog_ = std::make_unique<Watchdog>(world_.rank == 0 ? world_.size : 1,
                                         options_.silence_seconds, awake);
  while (true) {
    {
      std::lock_guard lock(mutex_);
      if (leaving_) return;
    }
    if (Now() >= next_beat) {
      next_beat = Now() + interval;
      SendHeartbeats(std::min(kNoticeSeconds, interval));
    }
    if (aborted() && aborted_at == 0) aborted_at = Now();
    if (aborted_at > 0 && Now() - aborted_at > kGraceSeconds && options_.last_resort) {
      options_.last_resort(status());
    }
    std::vector<pollfd> waits = {{wake_.fd(), POLLIN, 0}};
    for (const auto& peer : peers_)
      waits.push_back({peer->left ? -1 : peer->socket.fd(), POLLIN, 0});
    const double now = Now();
    const double wake = std::clamp(next_beat, now, now + kShortestBeat * 4);
    const int ready = poll(waits.data(), waits.size(), int((wake - now) * 1000) + 1);
    for (size_t i = 0; ready > 0 && i < peers_.size(); ++i) {
      if (waits[i + 1].revents != 0) Receive(peers_[i].get());
    }
    // This process was stopped, and goes on. It never waits as long for others.
    if (Now() - awake > options_.silence_seconds / 2) watchdog_->Restart(Now());
    awake = Now();
    CheckSilence();
  }
}

void ControlChannel::SendHeartbeats(double seconds) {
  const Heartbeat beat = Beat();
  if (world_.rank == 0) watchdog_->Heard(0, beat, Now());
  ControlMessage message;
  message.mutable_beat()->set_phase(int(beat.phase));
  message.mutable_beat()->set_progress(beat.progress);
  message.mutable_beat()->set_collective(beat.collective);
  message.mutable_beat()->set_detail(beat.detail);
  const std::string frame = EncodeFrame(message);
  const double deadline = Now() + seconds;
  for (const auto& peer : peers_) {
    // Who is just being sent something hears the next one.
    std::unique_lock lock(peer->sending, std::try_to_lock);
    if (lock) peer->socket.Send(frame, deadline - Now()).IgnoreError();
  }
}

void ControlChannel::CheckSilence() {
  if (aborted()) return;
  std::optional<Watchdog::Verdict> verdict = watchdog_->Check(Now());
  if (!verdict) return;
  std::string where;
  for (const auto& peer : peers_) {
    if (peer->rank == verdict->rank) where = peer->where;
  }
  Lost(absl::StrCat(verdict->reason, where));
}

void ControlChannel::Receive(Peer* peer) {
  // All that is there: whose heartbeats wait behind something long is not silent.
  absl::StatusOr<int64_t> got;
  do {
    const size_t before = peer->arrived.size();
    peer->arrived.resize(before + kReadBytes);
    got = peer->socket.ReceiveSome(&peer->arrived[before], kReadBytes);
    peer->arrived.resize(before + (got.ok() ? *got : 0));
  } while (got.ok() && *got == kReadBytes);
  std::vector<ControlMessage> messages;
  if (absl::Status s = TakeMessages(&peer->arrived, &messages); !s.ok()) got = s;
  for (const ControlMessage& message : messages) Handle(peer, message);
  if (got.ok() || peer->left) return;
  peer->left = true;
  if (!aborted()) {
    Lost(absl::StrCat("rank ", peer->rank, peer->where, " is gone: ", got.status().message(),
                      "; last heard of: ", Describe(peer->beat)));
  }
}

void ControlChannel::Handle(Peer* peer, const ControlMessage& message) {
  switch (message.kind_case()) {
    case ControlMessage::kBeat: {
      const ControlMessage::Beat& b = message.beat();
      const int phase = std::clamp(b.phase(), 0, kPhases - 1);
      peer->beat = {Phase(phase), b.progress(), b.collective(), b.detail()};
      watchdog_->Heard(peer->rank, peer->beat, Now());
      break;
    }
    case ControlMessage::kPart:
      TakePart(message.part());
      break;
    case ControlMessage::kAgreed: {
      std::lock_guard lock(mutex_);
      const auto& contents = message.agreed().contents();
      Agreement& agreement = open_[message.agreed().agreement()];
      agreement.result = {contents.begin(), contents.end()};
      agreement.collective = message.agreed().collective();
      changed_.notify_all();
      break;
    }
    case ControlMessage::kAbort:
      if (SetAborted(message.abort().exit_code(), message.abort().reason()) && world_.rank == 0) {
        SendToAll(message, kNoticeSeconds);
      }
      break;
    case ControlMessage::kStop:
      // Rank 0 passes it on; the one that it came from knows.
      if (world_.rank == 0) {
        AskToStop(message.stop().signal());
      } else {
        asked_to_stop_ = message.stop().signal();
      }
      break;
    case ControlMessage::kGoodbye: {
      peer->left = true;
      watchdog_->Heard(peer->rank, {.phase = Phase::kFinished}, Now());
      std::lock_guard lock(mutex_);
      others_left_ = true;
      changed_.notify_all();
      break;
    }
    default:
      break;
  }
}

void ControlChannel::TakePart(const ControlMessage::Part& part) {
  std::string differs;
  {
    std::lock_guard lock(mutex_);
    std::vector<ControlMessage::Part>& parts = open_[part.agreement()].parts;
    if (parts.empty() || parts.front().what() == part.what()) {
      parts.push_back(part);
      changed_.notify_all();
    } else {
      differs =
          absl::StrCat("ranks have lost step with each other: rank ", part.rank(), " is at ",
                       part.what(), ", rank ", parts.front().rank(), " at ", parts.front().what());
    }
  }
  if (!differs.empty()) Abort(absl::InternalError(differs));
}

}  // namespace qlora::engine
