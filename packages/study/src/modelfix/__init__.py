"""The `modelfix` command: subjects, approaches, fixing and evaluation, each in its environment."""

__version__ = "0.1.0"
