"""Figures of the literature, drawn anew with this library."""

from scripts.reproduce.coordinate_check import (
    coordinate_check as coordinate_check,
    CoordinateCheckConfig as CoordinateCheckConfig,
)
from scripts.reproduce.linearity import linearity as linearity, LinearityConfig as LinearityConfig
