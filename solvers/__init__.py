"""What happens in time? Losses, function-space flows, training of the networks themselves."""

from solvers.flow import gradient_flow as gradient_flow
from solvers.hierarchy_flow import hierarchy_flow as hierarchy_flow
from solvers.losses import (
    Brier as Brier,
    CrossEntropy as CrossEntropy,
    Hinge as Hinge,
    Loss as Loss,
    MeanSquaredError as MeanSquaredError,
)
from solvers.mse import (
    linearized_model as linearized_model,
    mse_descent as mse_descent,
    mse_flow as mse_flow,
)
from solvers.parameter_flow import parameter_flow as parameter_flow
from solvers.regression import (
    kernel_regression as kernel_regression,
    Regression as Regression,
)
from solvers.result import RESULTS as RESULTS, SolverError as SolverError, Trajectory as Trajectory
from solvers.stability import (
    Catapult as Catapult,
    catapult_map as catapult_map,
    max_learning_rate as max_learning_rate,
    training_phase as training_phase,
)
