"""What happens in time? Losses, function-space flows, training of the networks themselves."""

from solvers.flow import gradient_flow as gradient_flow
from solvers.hierarchy_flow import hierarchy_flow as hierarchy_flow
from solvers.losses import (
    CrossEntropy as CrossEntropy,
    Loss as Loss,
    MeanSquaredError as MeanSquaredError,
)
from solvers.parameter_flow import parameter_flow as parameter_flow
from solvers.regression import (
    kernel_regression as kernel_regression,
    Regression as Regression,
)
from solvers.result import RESULTS as RESULTS, SolverError as SolverError, Trajectory as Trajectory
