"""Small studies that tests run."""

import io

import numpy as np
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


def vectors(file, seed=0):
    """Writes a .npz file of random vectors of two classes."""
    rng = np.random.default_rng(seed)
    arrays = {f"x_{part}": rng.normal(size=(8, 5)) for part in ("train", "test")}
    arrays |= {f"y_{part}": np.arange(8) % 2 for part in ("train", "test")}
    np.savez(file, **arrays)


def quiet():
    """A console that writes into a string."""
    return Console(file=io.StringIO(), width=100)
