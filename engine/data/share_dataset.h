// A data set that one rank of a machine has read and tokenized, for the others there.

#ifndef QLORA_ENGINE_DATA_SHARE_DATASET_H_
#define QLORA_ENGINE_DATA_SHARE_DATASET_H_

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "engine/comm/host_exchange.h"
#include "engine/data/dataset.h"

namespace qlora::engine {

// All of `ranks`, and only they, call it: the first one's `dataset` becomes everyone's. Some
// megabytes pass at a time.
absl::Status ShareDataset(HostExchange* exchange, absl::Span<const int> ranks, Dataset* dataset);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_DATA_SHARE_DATASET_H_
