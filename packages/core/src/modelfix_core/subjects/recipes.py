"""How the model of a subject is trained, as data."""

from pydantic import BaseModel, ConfigDict, Field


class Recipe(BaseModel):
    """Training with Adam and cross entropy from fresh weights; the last epoch is the model.

    The study's LeNet5 is trained so, with the defaults.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    learning_rate: float = Field(default=1e-4, gt=0, description="of Adam, constant")
    batch_size: int = Field(default=128, ge=1, description="images per step")
    epochs: int = Field(default=20, ge=1, description="passes over the train split")
