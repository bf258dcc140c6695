from modelfix_genmunn import GenMuNN
from modelfix_testing import ApproachStandardTests


class TestGenMuNN(ApproachStandardTests):
    approach = GenMuNN
    config = {  # noqa: RUF012
        "population": 12,
        "generations": 4,
        "elite": 2,
        "fitness_samples": 200,
    }
