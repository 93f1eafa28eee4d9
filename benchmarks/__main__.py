"""What `make bench` measures: training and preparing, each beside the plain way."""

from pathlib import Path

from benchmarks import prepare_speed, training_speed

# The real images where they lie beside the checkout; else those that were pulled, whose small pictures say little.
ARCHIVES = (Path("../shared/data/cub200/CUB_200_2011.tgz"), Path("data/cub200/CUB_200_2011.tgz"))

if __name__ == "__main__":
    training_speed.main()
    if archive := next((path for path in ARCHIVES if path.is_file()), None):
        prepare_speed.main([str(archive)])
    else:
        print(f"prepare: no {ARCHIVES[1]}; bring it with `dvc pull data/cub200` or `finetune fetch cub200`")
