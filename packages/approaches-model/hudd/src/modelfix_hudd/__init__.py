"""HUDD for modelfix: heatmaps of failures clustered into root causes that guide retraining."""
