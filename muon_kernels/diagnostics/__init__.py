"""What an optimizer does to a model: spectra of its matrices, sizes of its activations, Hessians, statistics.

Figures are in `muon_kernels.diagnostics.figures` and need the extra `muon_kernels[plots]`.
"""

from .activations import Activation, ActivationNorms, coordinate_check, layer_picks
from .hessians import hessian, hessian_eigenvalues, loss_hessian_eigenvalues
from .monitor import SpectrumMonitor
from .spectrum import Spectrum, condition_number, singular_values, spectra, spectral_norm
from .statistics import learned_nothing, seed_statistics
from .writers import Csv, JsonLines, TensorBoard, WandB, Writer

__all__ = [
    "Activation",
    "ActivationNorms",
    "Csv",
    "JsonLines",
    "Spectrum",
    "SpectrumMonitor",
    "TensorBoard",
    "WandB",
    "Writer",
    "condition_number",
    "coordinate_check",
    "hessian",
    "hessian_eigenvalues",
    "layer_picks",
    "learned_nothing",
    "loss_hessian_eigenvalues",
    "seed_statistics",
    "singular_values",
    "spectra",
    "spectral_norm",
]
