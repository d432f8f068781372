// One layer at a time of several forms of a model, side by side: slots for the weights of one
// layer, and for each form a piece that takes the residual stream through it.
//
// Forms that store a layer alike share its slots: two forms that differ in other layers only are
// one here.

#ifndef QLORA_ENGINE_DRIFT_LAYER_RUN_H_
#define QLORA_ENGINE_DRIFT_LAYER_RUN_H_

#include <map>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/drift/model_form.h"
#include "engine/drift/stream.h"

namespace qlora::engine {

class LayerRun {
 public:
  // `with_pieces` false: slots alone, to look at weights. `forms` and what they borrow must outlive
  // it.
  static absl::StatusOr<std::unique_ptr<LayerRun>> Create(const StreamContext& context,
                                                          absl::Span<const ModelForm> forms,
                                                          bool with_pieces);

  const Plan& plan() const { return phase_->plan(); }
  absl::Status Open() { return phase_->Open(); }
  void Close() { phase_->Close(); }

  // Fills the slots with the weights of this layer, adapters included.
  absl::Status Load(int64_t layer);
  // Lets go of the mapped checkpoints' pages of a layer: Load does it itself; again for who looked
  // at them since.
  void ReleaseSources(int64_t layer) const;
  // What the batch holds beside the residual stream, for the calls of Run that follow.
  absl::Status StageBatch(const MicroBatchInputs& batch);
  // The loaded layer of a form: `stream` holds tokens · hidden numbers of the form's compute type,
  // before and after.
  absl::Status Run(size_t form, void* stream, int64_t bytes);

  // For looking at weights: the slots in which the loaded layer of a form lies. Their rows have the
  // names of layer 0.
  const Storage& StorageOf(size_t form) const;
  // The rows of a layer, in the order of those slots.
  const std::vector<WeightRow>& RowsOf(int64_t layer) const { return rows_[layer]; }
  Execution* execution() { return phase_->execution(); }

 private:
  // One way of storing a layer, with its slots.
  struct Store {
    const ModelForm* form = nullptr;
    std::vector<bool> dense;           // by row: in 16 bits although the form is quantized
    Storage storage;                   // of plan().run.program
    std::map<int64_t, int64_t> piece;  // window → piece
    std::vector<AdaptedModule> adapted;
  };

  LayerRun(const StreamContext& context, absl::Span<const ModelForm> forms);
  size_t StoreFor(const ModelForm& form, int64_t layer);
  RecordedRun Record(const KernelSelection& kernels, bool with_pieces);
  Storage AddStore(const Store& store, const Storage* tables_of, Program* program) const;
  absl::Status LoadStore(const Store& store, int64_t layer);
  absl::Status LoadAdapter(const Store& store, int64_t layer);
  int64_t LoadingBytesOfForms() const;

  const StreamContext context_;
  const ModelSpec& spec_;
  const absl::Span<const ModelForm> forms_;
  std::vector<std::vector<WeightRow>> rows_;  // by layer
  std::vector<Store> stores_;
  std::vector<std::vector<size_t>> store_of_;  // by form and layer
  BatchViews batch_;
  kernels::Tensor stream_f32_, stream_bf16_;  // [tokens, hidden]; empty where no form has the type
  std::unique_ptr<StreamPhase> phase_;
  int64_t layer_ = -1;  // loaded
};

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_DRIFT_LAYER_RUN_H_
