"""Runs the benchmark and prints its table."""

from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from scripts import runtime
from scripts.benchmark.cases import PARTS
from scripts.benchmark.solves import SIZES
from scripts.benchmark.timing import bandwidth_gb_per_second, cholesky_gflops, gemm_gflops
from scripts.console import ready
from zoo.common import checks


@dataclass(frozen=True)
class BenchmarkConfig:
    """Times the library against the naive way in the same run; prints medians and ratios."""

    parts: tuple[str, ...] = tuple(PARTS)
    """What to time: kernels, many (examples), dynamics and limits (against neural-tangents, if
    `make peer` has been run), tensors (O_3, O_4), operators, foreign (Flax, a transformer,
    Hessians), growth, taylor, flows, hierarchy, convolution, solves (with their errors)."""
    repeats: int = 5
    """Counted calls, of which the median is shown."""
    precision: runtime.Precision = "float32"
    """Floating-point type of everything (of `solves`: float32, beside float64)."""
    sizes: tuple[int, ...] = SIZES
    """Training points of `solves`."""
    root: Path | None = None
    """The folder that holds MNIST, for `solves` (default: clusters of random images)."""

    def check(self) -> None:
        """**Raises:** `ValueError` for an unknown part, no repeats, no sizes or no folder."""
        for part in self.parts:
            checks.choice("parts", part, PARTS)
        checks.integer("repeats", self.repeats)
        checks.distinct("sizes", self.sizes)
        for size in self.sizes:
            checks.integer("sizes", size)
        if self.root is not None and not self.root.is_dir():
            raise ValueError(f"`root` is {str(self.root)!r}, expected a folder that holds MNIST.")
        checks.choice("precision", self.precision, ("float32", "float64"))


def benchmark(config: BenchmarkConfig) -> None:
    """Times `config.parts` and prints a table.

    **Raises:** `ValueError` as `config.check()`, before any work.
    """
    config.check()
    console = ready(Console())
    settings = {"solves": {"sizes": config.sizes, "root": config.root}}
    with runtime.precision(config.precision):
        console.print(
            f"{runtime.provenance()['devices']}, {config.precision}, medians of {config.repeats}. "
            f"The machine's limits: matrix product {gemm_gflops(config.repeats):.0f} GFLOP/s, "
            f"Cholesky {cholesky_gflops(config.repeats):.0f} GFLOP/s, "
            f"memory {bandwidth_gb_per_second(config.repeats):.0f} GB/s."
        )
        table = Table(box=SIMPLE_HEAD)
        for heading in ("task", "ours", "against", "takes", "ours / that"):
            table.add_column(heading, justify="left" if heading in ("task", "against") else "right")
        try:
            for part in config.parts:
                options = settings.get(part, {})
                for row in PARTS[part](config.repeats, **options):
                    table.add_row(*map(escape, row.shown()))
        finally:  # what was timed is shown, whatever stops the rest
            console.print(table)
