// The loss of a run as a picture: training as a line, evaluations as dots.

#ifndef QLORA_ENGINE_REPORT_LOSS_CURVE_H_
#define QLORA_ENGINE_REPORT_LOSS_CURVE_H_

#include <string>

#include "proto/run_state.pb.h"

namespace qlora::engine {

// An SVG document (PlotDocument) from state.log_history. Values that are not finite are left out;
// without any record the frame alone.
std::string LossCurveSvg(const proto::RunState& state);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_REPORT_LOSS_CURVE_H_
