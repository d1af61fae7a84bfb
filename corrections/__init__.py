"""How does a finite network differ from its limit, at one point in parameter space?"""

from corrections.eigenvalues import (
    spectral_density as spectral_density,
    SpectralDensity as SpectralDensity,
    Spectrum as Spectrum,
    spectrum as spectrum,
)
from corrections.hierarchy import ddntk as ddntk, dntk as dntk, o3 as o3, o4 as o4
from corrections.kernel import nngp as nngp, ntk as ntk
from corrections.operator import (
    KernelOperator as KernelOperator,
    NTKCoefficient as NTKCoefficient,
    NTKOperator as NTKOperator,
)
from corrections.rules import register_layer as register_layer
from corrections.smoothness import KinkWarning as KinkWarning
from corrections.taylor import (
    taylor_coefficients as taylor_coefficients,
    taylor_terms as taylor_terms,
    taylorize as taylorize,
    TaylorModel as TaylorModel,
)
