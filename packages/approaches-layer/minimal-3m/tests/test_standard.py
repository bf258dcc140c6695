from modelfix_minimal_3m import Minimal3M
from modelfix_testing import ApproachStandardTests


class TestMinimal3M(ApproachStandardTests):
    approach = Minimal3M
    config = {"faults": (1, 5)}  # noqa: RUF012
