"""What is the network? Parameterizations, layers, architectures and data sets."""

from zoo.activations import activation_function as activation_function, ACTIVATIONS as ACTIVATIONS
from zoo.data import Dataset as Dataset, DATASETS as DATASETS, load as load
from zoo.frozen import Frozen as Frozen
from zoo.layers import Dense as Dense
from zoo.mlp import MLP as MLP
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
from zoo.reparameterization import (
    learning_rates as learning_rates,
    reparameterize as reparameterize,
)
from zoo.transforms import (
    centered as centered,
    scaled as scaled,
    with_output as with_output,
)
