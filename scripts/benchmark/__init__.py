"""Speed, as ratios against the naive way in the same run, with the machine's limit beside it."""

from scripts.benchmark.runner import benchmark as benchmark, BenchmarkConfig as BenchmarkConfig
