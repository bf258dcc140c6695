from modelfix_distrrep import DistrRep
from modelfix_testing import ApproachStandardTests


class TestStandard(ApproachStandardTests):
    approach = DistrRep
    config = {"classes": 2, "particles": 20, "iterations": 12}  # noqa: RUF012
