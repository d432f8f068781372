// Bytes between ranks over MPI: for ranks on CPUs, which mpirun has started.
//
// The MPI library is loaded when a job has several ranks on CPUs, and only then: the program starts
// on machines without it.

#ifndef QLORA_ENGINE_COMM_MPI_LINK_H_
#define QLORA_ENGINE_COMM_MPI_LINK_H_

#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "engine/comm/host_link.h"

namespace qlora::engine {

// Call it once in a process, on the thread that will use and destroy the link. `aborted` is asked
// while bytes are awaited; its error ends the wait, and MPI is then not shut down. NoDevice where
// there is no usable MPI, BadJob where it counts other ranks than these.
absl::StatusOr<std::unique_ptr<HostLink>> OpenMpiLink(int rank, int size,
                                                      std::function<absl::Status()> aborted);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_COMM_MPI_LINK_H_
