"""How does a finite network differ from its limit, at one point in parameter space?"""

from corrections.hierarchy import o3 as o3
from corrections.kernel import ntk as ntk
from corrections.taylor import taylor_coefficients as taylor_coefficients
from corrections.taylor import taylor_terms as taylor_terms
from corrections.taylor import taylorize as taylorize
from corrections.taylor import TaylorModel as TaylorModel
