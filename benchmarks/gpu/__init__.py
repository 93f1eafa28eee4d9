"""What a GPU does for the study: agreement with the CPU, speed, and the seed report's strategies trained for real.

`python -m benchmarks.gpu --help` lists the commands. They need PyTorch and what `finetune train` imports, and neither
DVC nor MLflow; stores and backbone are brought ready made (`finetune prepare` and `finetune backbone`).
"""
