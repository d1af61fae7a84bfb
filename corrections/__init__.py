"""How does a finite network differ from its limit, at one point in parameter space?"""

from corrections.hierarchy import dntk as dntk, o3 as o3
from corrections.kernel import ntk as ntk
from corrections.smoothness import KinkWarning as KinkWarning
from corrections.taylor import (
    taylor_coefficients as taylor_coefficients,
    taylor_terms as taylor_terms,
    taylorize as taylorize,
    TaylorModel as TaylorModel,
)
