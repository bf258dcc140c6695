"""DeepRepair for modelfix: retraining on clean images in the style of the failures."""
