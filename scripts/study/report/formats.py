"""How the report writes numbers."""

import re

import numpy as np

MISSING = "–"
INFINITE = "∞"
NO_BETTER = "*"
"""Marks a gain that is none in some seed."""
_NAMES = {
    "limit_distance": "distance to the limit",
    "o3_size": "size of O_3",
    "o4_size": "size of O_4",
    "hessian_norm": "Hessian norm",
}


def quantity(name: str) -> str:
    """A quantity of `trends.exponents` in words."""
    return _NAMES.get(name, name)


def error(value: float) -> str:
    """Two figures: 0.34, 1.2e-3; "stopped" for an infinite one."""
    if np.isinf(value):
        return "stopped"
    if np.isnan(value):
        return MISSING
    if 0.1 <= value < 100:
        return f"{value:#.2g}".rstrip(".")
    return _short_power(f"{value:.1e}")


def ratio(value: float, *, everywhere: bool) -> str:
    """A gain, marked where it is none in some seed."""
    return number(value) + ("" if everywhere else NO_BETTER)


def number(value: float) -> str:
    """Three figures at most, without an exponent where there is no need."""
    if np.isnan(value):
        return MISSING
    if np.isinf(value):
        return INFINITE
    return f"{value:.0f}" if 1000 > abs(value) >= 100 else _short_power(f"{value:.3g}")


def fraction(value: float) -> str:
    """Two decimals."""
    return MISSING if not np.isfinite(value) else f"{value:.2f}"


def time(value: float, beyond: float) -> str:
    """A mean horizon: a lower bound where it lies beyond the last time in some seeds."""
    if np.isnan(value):
        return MISSING
    return ("> " if beyond else "") + f"{float(f'{value:.2g}'):g}"


def latex(text: str) -> str:
    """Text as LaTeX prints it."""
    special = {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "–": "--",
        INFINITE: r"$\infty$",
    } | {sign: f"\\{sign}" for sign in "&%$#_{}"}
    escaped = "".join(special.get(sign, sign) for sign in text)
    with_powers = re.sub(
        r"(?<![\w.])(-?[\d.]+)e([+-]?)(\d+)",
        lambda m: f"${m[1]} \\times 10^{{{m[2].replace('+', '')}{m[3]}}}$",
        escaped,
    )
    return re.sub(r"(?<![\w$.{])-(?=\d)|> (?=\d)", lambda m: f"${m[0].strip()}$", with_powers)


def _short_power(text: str) -> str:
    """1.2e3 for 1.2e+03."""
    return re.sub(r"e([+-])0*(\d)", lambda m: f"e{m[1].strip('+')}{m[2]}", text)
