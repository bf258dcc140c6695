from modelfix_i_repair import IRepair
from modelfix_testing import ApproachStandardTests


class TestIRepair(ApproachStandardTests):
    approach = IRepair
    config = {"iterations": 20, "evaluate_every": 10}  # noqa: RUF012
