"""Fine-tuning studies of MobileNetV2: data sets x strategies x seeds, through DVC and MLflow."""

__version__ = "0.1.0"
