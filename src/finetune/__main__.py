"""The entry point: settings that must stand before any heavy import, then the command line."""

import os

# Two spinning OpenMP threads collapse when one core is busy elsewhere; waiting threads that sleep do not.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


def main() -> None:
    """Run `finetune`."""
    from finetune.cli import cli

    cli(prog_name="finetune")


if __name__ == "__main__":
    main()
