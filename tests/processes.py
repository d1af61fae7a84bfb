"""Scripts in processes of their own: for what has to be said before JAX starts."""

import os
import subprocess
import sys


def run(script: str, **environment: str) -> None:
    """Runs Python code on the CPU, in this folder; fails with what it printed where it fails."""
    whole = os.environ | {"PYTHONPATH": os.getcwd(), "JAX_PLATFORMS": "cpu"} | environment
    done = subprocess.run([sys.executable, "-c", script], env=whole, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
