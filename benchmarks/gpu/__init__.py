"""What a GPU does for the study: agreement with the CPU, speed, also beside timm, and the seed report's strategies
trained for real.

`python -m benchmarks.gpu all` does everything within a time; `--help` lists its parts, which are commands of their own.
They need PyTorch and what `finetune train` imports, and neither DVC nor MLflow; stores and backbone are brought ready
made (`finetune prepare` and `finetune backbone`).
"""
