from modelfix_arachne import Arachne
from modelfix_testing import ApproachStandardTests


class TestStandard(ApproachStandardTests):
    approach = Arachne
    config = {"population": 20, "generations": 5, "target": "all"}  # noqa: RUF012
