"""Small studies that tests run."""

import io

from rich.console import Console

from scripts.study import StudyConfig


def small(out, **options):
    """Two widths of an MLP under one prediction: moments, once compiled."""
    defaults = {
        "name": "small",
        "out": out,
        "n_train": 6,
        "n_test": 6,
        "architectures": ("MLP",),
        "widths": (16, 32),
        "depths": (1,),
        "parameterizations": ("NTK",),
        "seeds": (0,),
        "orders": (2,),
        "infinite_width": False,
        "taylor_orders": (),
        "measures": (),
        "predicted_kernels": False,
        "times": (0.3, 3.0),
        "devices": 1,
    }
    return StudyConfig(**(defaults | options))


def quiet():
    """A console that writes into a string."""
    return Console(file=io.StringIO(), width=100)
