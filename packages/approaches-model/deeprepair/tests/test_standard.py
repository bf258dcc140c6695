from modelfix_deeprepair import DeepRepair
from modelfix_testing import ApproachStandardTests


class TestDeepRepair(ApproachStandardTests):
    approach = DeepRepair
    config = {"learning_rates": (1e-3,), "epochs": 2}  # noqa: RUF012
