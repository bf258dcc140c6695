"""Standard tests for approaches, a tiny subject and models with planted faults."""

from modelfix_core.planting import PlantedFault, plant, rank_of_planted

from modelfix_testing.standard import ApproachStandardTests
from modelfix_testing.study import STUDY_SUBJECTS, study_model, study_task
from modelfix_testing.tiny import layerless_model, mlp, tiny_dataset, tiny_subject, tiny_task

__all__ = [
    "STUDY_SUBJECTS",
    "ApproachStandardTests",
    "PlantedFault",
    "layerless_model",
    "mlp",
    "plant",
    "rank_of_planted",
    "study_model",
    "study_task",
    "tiny_dataset",
    "tiny_subject",
    "tiny_task",
]
