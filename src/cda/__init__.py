"""Curriculum data augmentation for dataset distillation, as a workflow anybody can run."""

__version__ = "0.1.0"
