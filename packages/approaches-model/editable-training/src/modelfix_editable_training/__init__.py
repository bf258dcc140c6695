"""Editable Training for modelfix: a model trained so that single mistakes can be edited."""
