from modelfix_editable_training import EditableTraining
from modelfix_testing import ApproachStandardTests


class TestEditableTraining(ApproachStandardTests):
    approach = EditableTraining
    config = {"learning_rates": (1e-3,), "epochs": 2}  # noqa: RUF012
