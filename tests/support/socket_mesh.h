// A link for the bytes of ranks that one process forks: a socket between each two of them.
#ifndef QLORA_TESTS_SUPPORT_SOCKET_MESH_H_
#define QLORA_TESTS_SUPPORT_SOCKET_MESH_H_

#include <memory>
#include <vector>

#include "engine/comm/control_channel.h"
#include "engine/comm/host_link.h"

namespace qlora::tests {

class SocketMesh {
 public:
  // Before the ranks are forked; none of them sends to itself.
  explicit SocketMesh(int size);
  ~SocketMesh();
  SocketMesh(const SocketMesh&) = delete;
  SocketMesh& operator=(const SocketMesh&) = delete;

  // In a rank's process. Ends when the job is aborted. Both must outlive it.
  std::unique_ptr<engine::HostLink> Open(engine::ControlChannel* control) const;

 private:
  std::vector<std::vector<int>> ends_;  // [rank][peer]
};

}  // namespace qlora::tests

#endif  // QLORA_TESTS_SUPPORT_SOCKET_MESH_H_
