"""What is the network? Parameterizations, layers, architectures and data sets."""

from zoo.adapters import equinox_rules as equinox_rules  # which registers them
from zoo.adapters.flax import FlaxModel as FlaxModel, from_flax as from_flax
from zoo.common.memory import memory_limit as memory_limit
from zoo.common.trainable import parameters as parameters
from zoo.contraction_rule import (
    ContractionRule as ContractionRule,
    register_contraction_rule as register_contraction_rule,
    Transposed as Transposed,
)
from zoo.data.load import (
    Dataset as Dataset,
    DATASETS as DATASETS,
    from_hugging_face as from_hugging_face,
    load as load,
)
from zoo.layers.activations import (
    Activation as Activation,
    activation_function as activation_function,
    ACTIVATIONS as ACTIVATIONS,
    monomial as monomial,
    step as step,
)
from zoo.layers.affine import AffineLayer as AffineLayer, Conv as Conv, Dense as Dense
from zoo.layers.frozen import Frozen as Frozen
from zoo.layers.normalization import BatchNorm as BatchNorm, GroupNorm as GroupNorm
from zoo.layers.structure import (
    Flatten as Flatten,
    GlobalAveragePool as GlobalAveragePool,
    Residual as Residual,
    Sequential as Sequential,
)
from zoo.layers.training_pass import forward_train as forward_train
from zoo.limits.duals import Dual as Dual, GaussianPair as GaussianPair
from zoo.limits.hermite import HermiteDual as HermiteDual
from zoo.limits.kernels import (
    LayerKernels as LayerKernels,
    LimitLayout as LimitLayout,
    LimitNeeds as LimitNeeds,
    LimitSide as LimitSide,
)
from zoo.limits.rule import (
    LimitRule as LimitRule,
    register_limit_rule as register_limit_rule,
)
from zoo.limits.widths import LimitWidths as LimitWidths, NoLimitError as NoLimitError
from zoo.networks.cnn import CNN as CNN
from zoo.networks.dtype import astype as astype
from zoo.networks.infinite_network import (
    InfiniteNetwork as InfiniteNetwork,
    Kernels as Kernels,
    limit as limit,
    QuadratureWarning as QuadratureWarning,
)
from zoo.networks.mlp import MLP as MLP
from zoo.networks.reparameterization import (
    learning_rates as learning_rates,
    reparameterize as reparameterize,
)
from zoo.networks.signal_propagation import (
    critical_weight_std as critical_weight_std,
    signal_propagation as signal_propagation,
    SignalPropagation as SignalPropagation,
)
from zoo.networks.summary import Summary as Summary, summary as summary
from zoo.networks.tape import LayerCall as LayerCall, record as record
from zoo.networks.transforms import (
    centered as centered,
    scaled as scaled,
    with_output as with_output,
)
from zoo.networks.wide_resnet import WideResNet as WideResNet
from zoo.parameterization import (
    LayerScaling as LayerScaling,
    MEAN_FIELD as MEAN_FIELD,
    MUP as MUP,
    NTK as NTK,
    Parameterization as Parameterization,
    PARAMETERIZATIONS as PARAMETERIZATIONS,
    PowerLaw as PowerLaw,
    STANDARD as STANDARD,
    TensorScaling as TensorScaling,
)
from zoo.parameterized_layer import (
    ParameterizedLayer as ParameterizedLayer,
    ParameterizedTensor as ParameterizedTensor,
)
