"""The study: for which networks does the kernel picture hold, and what do corrections add?

Configs are there without JAX, so that a wrong one is refused at once; what computes is imported
when it is first asked for.
"""

import importlib
from typing import Any, TYPE_CHECKING

from scripts.study.config import PRESETS as PRESETS, StudyConfig as StudyConfig
from scripts.study.config_file import from_file as from_file

if TYPE_CHECKING:
    from scripts.study.runner import execute as execute, prepare as prepare, run as run
    from scripts.study.storage import read as read

_COMPUTING = {"read": "storage", "execute": "runner", "prepare": "runner", "run": "runner"}


def __getattr__(name: str) -> Any:
    if name not in _COMPUTING:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_COMPUTING[name]}"), name)
