from modelfix_apricot import Apricot
from modelfix_testing import ApproachStandardTests


class TestApricot(ApproachStandardTests):
    approach = Apricot
    config = {  # noqa: RUF012
        "submodels": 3,
        "submodel_epochs": 3,
        "submodel_learning_rate": 2e-3,
        "rounds": 2,
        "eta": 1e-2,
    }
