// Which models `drift` compares.

#ifndef QLORA_ENGINE_DRIFT_DRIFT_FORMS_H_
#define QLORA_ENGINE_DRIFT_DRIFT_FORMS_H_

#include <string>
#include <vector>

#include "engine/drift/model_form.h"
#include "engine/drift/stream.h"
#include "engine/setup/setup.h"

namespace qlora::engine {

// What a comparison on the setup's evaluation data runs with.
StreamContext StreamContextOf(const Setup& setup);

// Weights rounded to drift.baseline, activations and sums in fp32.
ModelForm BaselineForm(const Setup& setup);
// As mode LORA would have it: weights as stored, activations in the job's compute type.
ModelForm SixteenBitForm(const Setup& setup);
// As training has it, under another quantization.
ModelForm QuantizedForm(const Setup& setup, const quant::QuantSpec& spec);
// The base that the job's mode trains on.
ModelForm TrainedForm(const Setup& setup);
// The job's quantization, but all linears of these layers in 16 bits.
ModelForm KeptForm(const Setup& setup, const std::vector<int64_t>& layers);

// The quantizations measured: the job's first; with drift.compare_types all types at its block
// size, then its own at drift.block_sizes. Each once.
std::vector<quant::QuantSpec> SpecsOf(const Setup& setup);

// The published order of types, worst first (Dettmers et al. 2023, table 2: mean perplexity of 125M
// to 13B models), at `block_size`, double quantized.
std::vector<quant::QuantSpec> PublishedOrder(int block_size);

// Bytes of the linears of the layers as the form stores them.
int64_t LinearBytes(const ModelSpec& spec, const ModelForm& form);
int64_t LinearElements(const ModelSpec& spec);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_DRIFT_DRIFT_FORMS_H_
