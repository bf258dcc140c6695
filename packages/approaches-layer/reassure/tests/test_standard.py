from modelfix_reassure import Reassure
from modelfix_testing import ApproachStandardTests


class TestReassure(ApproachStandardTests):
    approach = Reassure
    config = {"faults": (5,), "n": (10.0,)}  # noqa: RUF012
