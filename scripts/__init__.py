"""Run it: studies, reproductions and benchmarks, on a laptop and unchanged on accelerators."""
