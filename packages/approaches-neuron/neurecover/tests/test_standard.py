from modelfix_neurecover import NeuRecover
from modelfix_testing import ApproachStandardTests


class TestStandard(ApproachStandardTests):
    approach = NeuRecover
    config = {"particles": 20, "iterations": 12}  # noqa: RUF012
