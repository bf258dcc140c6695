"""Editable Training for modelfix: a model trained so that single mistakes can be edited."""

from modelfix_editable_training.approach import EditableTraining, EditableTrainingConfig

__all__ = ["EditableTraining", "EditableTrainingConfig"]
