"""The entry point: settings that must stand before any heavy import, then the command line."""

import gc
import os

# OpenMP threads that spin while they wait collapse when a core is busy elsewhere; those that sleep at once lose a
# third of the rate on small images. A short spin keeps most of both (GNU's OpenMP, which PyTorch has on Linux).
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


def main() -> None:
    """Run `finetune`."""
    from finetune.cli import cli

    try:
        cli(prog_name="finetune")
    finally:
        gc.freeze()  # else Python looks through all of its objects again as it ends, which takes seconds


if __name__ == "__main__":
    main()
