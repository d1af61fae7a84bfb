"""Figures and tables of the literature, made anew with this library."""

from scripts.reproduce.coordinate_check import (
    coordinate_check as coordinate_check,
    CoordinateCheckConfig as CoordinateCheckConfig,
)
from scripts.reproduce.infinite_width import (
    infinite_width as infinite_width,
    InfiniteWidthConfig as InfiniteWidthConfig,
)
from scripts.reproduce.linearity import linearity as linearity, LinearityConfig as LinearityConfig
