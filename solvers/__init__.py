"""What happens in time? Losses, function-space flows, training of the networks themselves."""

from solvers.closed_form.gaussian import Gaussian as Gaussian, PredictionError as PredictionError
from solvers.closed_form.gaussian_process import Posterior as Posterior, posterior as posterior
from solvers.closed_form.infinite_ensemble import Ensemble as Ensemble, ensemble as ensemble
from solvers.closed_form.mse import (
    linearized_model as linearized_model,
    mse_descent as mse_descent,
    mse_flow as mse_flow,
)
from solvers.closed_form.mse_operator import mse_flow_operator as mse_flow_operator
from solvers.closed_form.regression import (
    kernel_regression as kernel_regression,
    Regression as Regression,
)
from solvers.comparison import (
    compare_predictions as compare_predictions,
    Comparison as Comparison,
)
from solvers.expansion.continuous import width_expansion as width_expansion
from solvers.expansion.discrete import width_expansion_descent as width_expansion_descent
from solvers.expansion.record import (
    ExpansionError as ExpansionError,
    ValidityWarning as ValidityWarning,
    WidthExpansion as WidthExpansion,
)
from solvers.flows.chebyshev import RungeKuttaChebyshev as RungeKuttaChebyshev
from solvers.flows.hierarchy_flow import hierarchy_flow as hierarchy_flow
from solvers.flows.kernel_flow import gradient_flow as gradient_flow
from solvers.flows.parameter_flow import parameter_flow as parameter_flow
from solvers.flows.stopping import (
    AtAccuracy as AtAccuracy,
    AtLoss as AtLoss,
    AtSteadyState as AtSteadyState,
)
from solvers.frozen_kernel.kernel_blocks import KernelBlocks as KernelBlocks
from solvers.losses import (
    Brier as Brier,
    CrossEntropy as CrossEntropy,
    Hinge as Hinge,
    Loss as Loss,
    MeanSquaredError as MeanSquaredError,
)
from solvers.result import RESULTS as RESULTS, SolverError as SolverError, Trajectory as Trajectory
from solvers.steps.descent import gradient_descent as gradient_descent
from solvers.steps.stability import (
    Catapult as Catapult,
    catapult_map as catapult_map,
    max_learning_rate as max_learning_rate,
    training_phase as training_phase,
)
from solvers.training.ensemble import (
    EnsembleTraining as EnsembleTraining,
    train_ensemble as train_ensemble,
)
from solvers.training.history import History as History
from solvers.training.loop import (
    initial_state as initial_state,
    TrainingState as TrainingState,
)
from solvers.training.metric_transform import scale_by_metric as scale_by_metric
from solvers.training.setup import log_spaced as log_spaced
from solvers.training.spawn import spawn as spawn
from solvers.training.train import (
    train as train,
    Training as Training,
    TrainingError as TrainingError,
)
