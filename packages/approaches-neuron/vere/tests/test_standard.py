from modelfix_testing import ApproachStandardTests
from modelfix_vere import VeRe


class TestVeRe(ApproachStandardTests):
    approach = VeRe
    # LeNet5's dense layers are not square.
    config = {"relaxed": True, "rounds": 4}  # noqa: RUF012
