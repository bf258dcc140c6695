from modelfix_hudd import Hudd
from modelfix_testing import ApproachStandardTests


class TestHudd(ApproachStandardTests):
    approach = Hudd
    config = {"learning_rates": (1e-3,), "epochs": 2}  # noqa: RUF012
