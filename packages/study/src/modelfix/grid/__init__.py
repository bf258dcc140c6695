"""The grid: a study file, its cells, the engines that run them, and where they stand."""
