from modelfix_care import Care
from modelfix_testing import ApproachStandardTests


class TestCare(ApproachStandardTests):
    approach = Care
    config = {"iterations": 20}  # noqa: RUF012
