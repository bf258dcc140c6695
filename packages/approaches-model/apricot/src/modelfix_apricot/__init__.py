"""Apricot for modelfix: weights move towards submodels that are right, between retraining."""
