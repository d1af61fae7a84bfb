"""How does a finite network differ from its limit, at one point in parameter space?"""

from corrections.contraction.summary import (
    contraction_summary as contraction_summary,
    ContractionRow as ContractionRow,
    ContractionSummary as ContractionSummary,
)
from corrections.forward_mode import ForwardModeError as ForwardModeError
from corrections.kernels.alignment import kernel_target_alignment as kernel_target_alignment
from corrections.kernels.hierarchy import ddntk as ddntk, dntk as dntk, o3 as o3, o4 as o4
from corrections.kernels.monte_carlo import (
    monte_carlo_kernels as monte_carlo_kernels,
    MonteCarloKernels as MonteCarloKernels,
)
from corrections.kernels.ntk import nngp as nngp, ntk as ntk
from corrections.kernels.time_derivatives import (
    kernel_rates as kernel_rates,
    KernelRates as KernelRates,
)
from corrections.measures.displacement import (
    linearity_bound as linearity_bound,
    LinearityBound as LinearityBound,
    row_space_fraction as row_space_fraction,
)
from corrections.measures.distances import (
    activation_distance as activation_distance,
    function_distance as function_distance,
    kernel_distance as kernel_distance,
    kernel_velocity as kernel_velocity,
    relative_change as relative_change,
    smallest_ntk_eigenvalue as smallest_ntk_eigenvalue,
)
from corrections.measures.linearity import (
    hessian_norm as hessian_norm,
    jacobian_norm as jacobian_norm,
    Kappa as Kappa,
    kappa as kappa,
    NormEstimate as NormEstimate,
)
from corrections.measures.mode_connectivity import (
    error_barrier as error_barrier,
    ErrorBarrier as ErrorBarrier,
    interpolate as interpolate,
    weight_path as weight_path,
    WeightPath as WeightPath,
)
from corrections.operators.eigenvalues import (
    Eigenvalues as Eigenvalues,
    extreme_eigenvalues as extreme_eigenvalues,
    spectral_density as spectral_density,
    SpectralDensity as SpectralDensity,
    Spectrum as Spectrum,
    spectrum as spectrum,
)
from corrections.operators.loss_hessian import LossHessian as LossHessian
from corrections.operators.ntk_operator import (
    KernelOperator as KernelOperator,
    NTKCoefficient as NTKCoefficient,
    NTKOperator as NTKOperator,
)
from corrections.smoothness import KinkWarning as KinkWarning
from corrections.symmetric.layouts import RoundingWarning as RoundingWarning
from corrections.taylor.taylor_model import (
    taylor_coefficients as taylor_coefficients,
    taylor_terms as taylor_terms,
    taylorize as taylorize,
    TaylorModel as TaylorModel,
)
