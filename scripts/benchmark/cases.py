"""The parts of the benchmark: each function yields the comparisons of one."""

from scripts.benchmark.convolution import convolution
from scripts.benchmark.dynamics import dynamics
from scripts.benchmark.flows import flows, hierarchy
from scripts.benchmark.foreign import foreign
from scripts.benchmark.growth import growth
from scripts.benchmark.kernels import kernels
from scripts.benchmark.limits import limits
from scripts.benchmark.many import many
from scripts.benchmark.operators import operators
from scripts.benchmark.solves import solves
from scripts.benchmark.taylor import taylor
from scripts.benchmark.tensors import tensors

PARTS = {
    "kernels": kernels,
    "many": many,
    "tensors": tensors,
    "operators": operators,
    "foreign": foreign,
    "growth": growth,
    "taylor": taylor,
    "flows": flows,
    "hierarchy": hierarchy,
    "dynamics": dynamics,
    "convolution": convolution,
    "limits": limits,
    "solves": solves,
}
