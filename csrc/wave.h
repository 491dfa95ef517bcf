// A wave of matrices through a whole step: prologue, normalisation, chains and the last product, which steps the parameters.
#pragma once

#include <pybind11/pybind11.h>

namespace muon_kernels {

void bind_wave(pybind11::module_& m);

}  // namespace muon_kernels
