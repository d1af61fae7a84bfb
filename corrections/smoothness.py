r"""Warns where an expansion takes derivatives that the network does not have.

A Taylor term of order q needs q continuous derivatives in the parameters. At the kinks of ReLU and
its kin second derivatives exist almost everywhere only: automatic differentiation returns those,
leaves the kinks out, and the expansion in powers of 1/width is suspect (Dyer & Gur-Ari 2020 assume
smooth activations).
"""

import warnings

from corrections.parameters import Model
from zoo import Activation
from zoo.common.contents import contents


class KinkWarning(UserWarning):
    """Derivatives were taken of a network that has fewer continuous ones."""


def warn_at_kinks(model: Model, order: int, *, stacklevel: int = 4) -> None:
    """**Warns:** `KinkWarning` where an activation of `model` has fewer than `order` derivatives.

    From order 2 on: first derivatives at kinks are what every network is trained with. Only
    activations that state their smoothness can be told (`zoo.Activation`). `stacklevel` is that of
    the user's line; 4 fits a caller under `full_precision`.
    """
    if order < 2:
        return

    activations = (node for node in contents(model) if isinstance(node, Activation))
    rough = {
        phi.name for phi in activations if phi.smoothness is not None and phi.smoothness < order
    }
    if rough:
        warnings.warn(
            f"`model` has the activation {', '.join(sorted(rough))}, which has fewer than {order} "
            f"continuous derivatives: derivatives of order {order} in the parameters leave its "
            "kinks out, and corrections made of them may not improve a prediction. Expected a "
            "smooth activation, such as tanh or gelu.",
            KinkWarning,
            stacklevel=stacklevel,
        )
