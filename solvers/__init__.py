"""What happens in time? Losses, function-space flows, training of the networks themselves."""

from solvers.blocks import KernelBlocks as KernelBlocks
from solvers.chebyshev import RungeKuttaChebyshev as RungeKuttaChebyshev
from solvers.comparison import (
    compare_predictions as compare_predictions,
    Comparison as Comparison,
)
from solvers.descent import gradient_descent as gradient_descent
from solvers.expansion.continuous import width_expansion as width_expansion
from solvers.expansion.discrete import width_expansion_descent as width_expansion_descent
from solvers.expansion.record import (
    ExpansionError as ExpansionError,
    ValidityWarning as ValidityWarning,
    WidthExpansion as WidthExpansion,
)
from solvers.flow import gradient_flow as gradient_flow
from solvers.gaussian import Gaussian as Gaussian, PredictionError as PredictionError
from solvers.gaussian_process import Posterior as Posterior, posterior as posterior
from solvers.hierarchy_flow import hierarchy_flow as hierarchy_flow
from solvers.infinite_ensemble import Ensemble as Ensemble, ensemble as ensemble
from solvers.losses import (
    Brier as Brier,
    CrossEntropy as CrossEntropy,
    Hinge as Hinge,
    Loss as Loss,
    MeanSquaredError as MeanSquaredError,
)
from solvers.metric_transform import scale_by_metric as scale_by_metric
from solvers.mse import (
    linearized_model as linearized_model,
    mse_descent as mse_descent,
    mse_flow as mse_flow,
)
from solvers.mse_operator import mse_flow_operator as mse_flow_operator
from solvers.parameter_flow import parameter_flow as parameter_flow
from solvers.regression import (
    kernel_regression as kernel_regression,
    Regression as Regression,
)
from solvers.result import RESULTS as RESULTS, SolverError as SolverError, Trajectory as Trajectory
from solvers.spawning import spawn as spawn
from solvers.stability import (
    Catapult as Catapult,
    catapult_map as catapult_map,
    max_learning_rate as max_learning_rate,
    training_phase as training_phase,
)
from solvers.stopping import (
    AtAccuracy as AtAccuracy,
    AtLoss as AtLoss,
    AtSteadyState as AtSteadyState,
)
from solvers.training import train as train, Training as Training, TrainingError as TrainingError
from solvers.training_history import History as History
from solvers.training_loop import (
    initial_state as initial_state,
    TrainingState as TrainingState,
)
from solvers.training_setup import log_spaced as log_spaced
