"""What is the network? Parameterizations, layers, architectures and data sets."""

from zoo.activations import activation_function as activation_function
from zoo.activations import ACTIVATIONS as ACTIVATIONS
from zoo.data import Dataset as Dataset
from zoo.data import load as load
from zoo.frozen import Frozen as Frozen
from zoo.layers import Dense as Dense
from zoo.mlp import MLP as MLP
from zoo.parameterization import LayerScaling as LayerScaling
from zoo.parameterization import NTK as NTK
from zoo.parameterization import Parameterization as Parameterization
from zoo.parameterization import PARAMETERIZATIONS as PARAMETERIZATIONS
from zoo.parameterization import PowerLaw as PowerLaw
from zoo.parameterization import STANDARD as STANDARD
from zoo.parameterization import TensorScaling as TensorScaling
