#include "engine/comm/mpi_link.h"

#define OMPI_SKIP_MPICXX 1  // MPI's C++ classes: long deprecated, and full of warnings
#include <dlfcn.h>
#include <mpi.h>

#include <chrono>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/errors.h"

namespace qlora::engine {
namespace {

// Of Open MPI 3 to 5, whose binary interface is one.
constexpr char kLibrary[] = "libmpi.so.40";
constexpr int kTag = 1;
// How often a wait only yields before it sleeps: a rank that is ahead must not take a core from one
// that still computes.
constexpr int kSpins = 2000;
constexpr auto kPause = std::chrono::microseconds(50);

// The functions used, under MPI's names, from the library.
struct Mpi {
  decltype(&MPI_Init_thread) Init_thread;
  decltype(&MPI_Finalize) Finalize;
  decltype(&MPI_Comm_rank) Comm_rank;
  decltype(&MPI_Comm_size) Comm_size;
  decltype(&MPI_Comm_set_errhandler) Comm_set_errhandler;
  decltype(&MPI_Isend) Isend;
  decltype(&MPI_Irecv) Irecv;
  decltype(&MPI_Testall) Testall;
  MPI_Comm world;
  MPI_Datatype byte;
  MPI_Errhandler errors_return;
};

absl::StatusOr<Mpi> Load() {
  // Its own plug-ins look their symbols up globally.
  void* const library = dlopen(kLibrary, RTLD_NOW | RTLD_GLOBAL);
  if (library == nullptr) {
    return proto::NoDeviceError(absl::StrCat("several ranks on CPUs need MPI, but ", dlerror(),
                                             ". On Debian: apt install openmpi-bin"));
  }
  Mpi mpi;
  std::string missing;
  const auto find = [&](auto* to, const char* name) {
    void* const symbol = dlsym(library, name);
    if (symbol == nullptr) absl::StrAppend(&missing, " ", name);
    *to = reinterpret_cast<std::remove_pointer_t<decltype(to)>>(symbol);
  };
  find(&mpi.Init_thread, "MPI_Init_thread");
  find(&mpi.Finalize, "MPI_Finalize");
  find(&mpi.Comm_rank, "MPI_Comm_rank");
  find(&mpi.Comm_size, "MPI_Comm_size");
  find(&mpi.Comm_set_errhandler, "MPI_Comm_set_errhandler");
  find(&mpi.Isend, "MPI_Isend");
  find(&mpi.Irecv, "MPI_Irecv");
  find(&mpi.Testall, "MPI_Testall");
  find(&mpi.world, "ompi_mpi_comm_world");
  find(&mpi.byte, "ompi_mpi_byte");
  find(&mpi.errors_return, "ompi_mpi_errors_return");
  if (!missing.empty()) {
    return proto::NoDeviceError(
        absl::StrCat(kLibrary, " is no Open MPI that can be used; it lacks", missing));
  }
  return mpi;
}

class MpiLink : public HostLink {
 public:
  MpiLink(const Mpi& mpi, std::function<absl::Status()> aborted)
      : mpi_(mpi), aborted_(std::move(aborted)) {}
  ~MpiLink() override {
    // It would wait for ranks that are gone.
    if (!failed_) mpi_.Finalize();
  }

  absl::Status Exchange(int to, const void* send, int64_t send_bytes, int from, void* receive,
                        int64_t receive_bytes) override {
    MPI_Request requests[2];
    int count = 0, error = MPI_SUCCESS;
    if (from >= 0) {
      error = mpi_.Irecv(receive, int(receive_bytes), mpi_.byte, from, kTag, mpi_.world,
                         &requests[count++]);
    }
    if (to >= 0 && error == MPI_SUCCESS) {
      error =
          mpi_.Isend(send, int(send_bytes), mpi_.byte, to, kTag, mpi_.world, &requests[count++]);
    }
    for (int spins = 0; error == MPI_SUCCESS; ++spins) {
      int done = 0;
      error = mpi_.Testall(count, requests, &done, MPI_STATUSES_IGNORE);
      if (done) return absl::OkStatus();
      if (absl::Status s = aborted_(); !s.ok()) {
        failed_ = true;
        return s;
      }
      if (spins < kSpins) {
        std::this_thread::yield();
      } else {
        std::this_thread::sleep_for(kPause);
      }
    }
    failed_ = true;
    return proto::PeerLostError(absl::StrCat("MPI: error ", error, " while ranks exchange bytes"));
  }

 private:
  const Mpi mpi_;
  const std::function<absl::Status()> aborted_;
  bool failed_ = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<HostLink>> OpenMpiLink(int rank, int size,
                                                      std::function<absl::Status()> aborted) {
  absl::StatusOr<Mpi> mpi = Load();
  if (!mpi.ok()) return mpi.status();
  int provided = 0, mpi_rank = -1, mpi_size = -1;
  if (mpi->Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided) != MPI_SUCCESS) {
    return proto::NoDeviceError("MPI can't be started; see its own messages above");
  }
  mpi->Comm_set_errhandler(mpi->world, mpi->errors_return);
  mpi->Comm_rank(mpi->world, &mpi_rank);
  mpi->Comm_size(mpi->world, &mpi_size);
  if (mpi_rank != rank || mpi_size != size) {
    return proto::BadJobError(absl::StrCat("this is rank ", rank, " of ", size, ", but rank ",
                                           mpi_rank, " of ", mpi_size,
                                           " for MPI, over which ranks on CPUs sum their "
                                           "gradients: start them with mpirun"));
  }
  return std::make_unique<MpiLink>(*mpi, std::move(aborted));
}

}  // namespace qlora::engine
