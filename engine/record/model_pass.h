// The model's forward and backward pass over one micro-batch, written to a piece op by op.

#ifndef QLORA_ENGINE_RECORD_MODEL_PASS_H_
#define QLORA_ENGINE_RECORD_MODEL_PASS_H_

#include <initializer_list>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "engine/record/program.h"
#include "engine/record/storage.h"
#include "engine/step/step_inputs.h"

namespace qlora::engine {

// What one linear leaves for its backward.
struct LinearTrace {
  int64_t weight = -1;
  kernels::Tensor x;
  std::vector<kernels::Tensor> low;  // one an adapter
};

// What one layer leaves for its backward. T tokens; q, k, v after projection, norm and rotation.
struct LayerTrace {
  kernels::Tensor h;  // residual stream at the layer's start [T, hidden]
  kernels::Tensor normed, rstd;
  kernels::Tensor q_raw, k_raw, q_rstd, k_rstd;  // before the norm over heads; only with qk_norm
  kernels::Tensor q, k, v, o, lse;
  kernels::Tensor attended;            // o after its projection
  kernels::Tensor h2, normed2, rstd2;  // residual stream between attention and MLP
  kernels::Tensor gate, up, activated;
  LinearTrace lq, lk, lv, lo, lgate, lup, ldown;
};

struct KvCache {
  std::vector<kernels::Tensor> k, v;  // per layer [rows, kv_heads · head_size]
};

class ModelPass {
 public:
  // `batch` holds the piece's inputs. `dropout`: whether adapters drop elements (training).
  ModelPass(const Storage& storage, const BatchViews& batch, Recorder* recorder, bool dropout)
      : s_(storage),
        spec_(storage.spec),
        batch_(batch),
        r_(*recorder),
        dropout_(dropout),
        tail_(TailColumns()) {}

  // From token ids to the normed output of the last layer [T, hidden]. With a cache, new keys and
  // values go there and attention reads from there.
  kernels::Tensor Forward(const KvCache* cache);
  // What Forward is made of, for a model that passes through memory layer by layer. With the same
  // types the numbers are Forward's, bit for bit.
  // Into `x` where given.
  kernels::Tensor Embed(kernels::Tensor x = {});
  // Layer `layer` with the window of layer `window_of`: the residual stream before it → after it;
  // both may be the same memory.
  void Layer(int64_t layer, int64_t window_of, kernels::Tensor before, kernels::Tensor after);
  kernels::Tensor FinalNorm(kernels::Tensor x, kernels::Tensor residual);

  // Loss over the trained rows of what Forward gave. Outputs are persistent; `dh` may be empty.
  struct LossOutputs {
    kernels::Tensor loss, row_loss, correct;
    bool accumulate = false;
  };
  void Loss(kernels::Tensor h, const LossOutputs& outputs, kernels::Tensor dh);
  // logits[t] = head(h[t]), f32 [T, vocab].
  void Logits(kernels::Tensor h, kernels::Tensor logits);

  // From the gradient of Forward's result down to the lowest trained layer; adds to the gradient
  // space.
  void Backward(kernels::Tensor dh);

  // Buffers that may be recomputed, cheapest first: [level][layer] → ids.
  static constexpr int kRecomputeLevels = 4;
  std::vector<std::vector<std::vector<BufferId>>> RecomputeCandidates() const;
  // What recomputing a whole layer begins with, by layer.
  std::vector<BufferId> LayerInputs() const;

 private:
  int64_t TailColumns() const;
  kernels::Tensor Activation(const char* name, int64_t cols, int64_t layer);
  // An activation that linears read, or a gradient that they pass on, with room for their `tail`.
  // What takes its place when an op works in place must be one too.
  kernels::Tensor LinearInput(const char* name, int64_t cols, int64_t layer);
  // The room behind an activation in its own buffer.
  static kernels::Tensor Behind(kernels::Tensor t);
  // An adapter as it stands in this piece: its rows, its dropout.
  kernels::AdapterSegment Segment(const AdapterIndex& adapter) const;
  kernels::ConstTensor Bias(WeightRole role, int64_t layer) const;
  kernels::Tensor Linear(WeightRole role, WeightRole bias_role, int64_t layer, kernels::Tensor x,
                         const char* name, LinearTrace* trace);
  // `readers`: the linears that read the norm's result, whose adapters' first products it makes
  // where the device says so.
  void Norm(WeightRole role, int64_t layer, kernels::Tensor x, kernels::Tensor residual,
            std::initializer_list<WeightRole> readers, kernels::Tensor* sum,
            kernels::Tensor* normed, kernels::Tensor* rstd);
  kernels::Tensor AdapterProduct(const kernels::AdapterSegment& segment, int64_t layer);
  std::vector<kernels::FirstProduct> FirstProducts(const kernels::RmsNormForward& norm,
                                                   int64_t layer,
                                                   std::initializer_list<WeightRole> readers);
  kernels::Tensor HeadNorm(WeightRole role, int64_t layer, kernels::Tensor x,
                           kernels::Tensor* rstd);
  kernels::Tensor Rotate(kernels::Tensor x, int64_t layer, bool inverse, const char* name);
  kernels::AttentionShape AttentionShapeOf(int64_t layer) const;
  // One layer; `x` is what the layer before left to be added to `residual` (empty at the first).
  void ForwardLayer(int64_t layer, int64_t window_of, kernels::Tensor x, kernels::Tensor residual,
                    const KvCache* cache, kernels::Tensor* mlp_out);

  // dx (+)= the gradient through a linear; an empty dx only trains.
  void LinearBackward(const LinearTrace& trace, WeightRole bias_role, int64_t layer,
                      kernels::Tensor dy, kernels::Tensor dx, bool accumulate);
  kernels::Tensor NormBackward(WeightRole role, int64_t layer, kernels::Tensor dy,
                               kernels::Tensor x, kernels::Tensor rstd, kernels::Tensor dresidual,
                               const char* name);
  kernels::Tensor HeadNormBackward(WeightRole role, int64_t layer, kernels::Tensor dy,
                                   kernels::Tensor x, kernels::Tensor rstd, const char* name);
  kernels::Tensor BackwardLayer(int64_t layer, kernels::Tensor dh);
  int64_t LowestTrainedLayer() const;
  bool IsTrained(WeightRole role, int64_t layer) const;

  const Storage& s_;
  const ModelSpec& spec_;
  const BatchViews& batch_;
  Recorder& r_;
  const bool dropout_;
  const int64_t tail_;  // most columns that a linear of this pass uses behind its input; mostly 0

  // What norms have made for linears that are still to come, by weight: one an adapter, empty where
  // the linear has to make it itself.
  absl::flat_hash_map<int64_t, std::vector<kernels::Tensor>> given_low_;
  std::vector<LayerTrace> layers_;
  kernels::Tensor final_sum_, final_rstd_;
};

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_RECORD_MODEL_PASS_H_
