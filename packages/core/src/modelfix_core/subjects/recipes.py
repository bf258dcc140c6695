"""How the model of a subject is trained, as data."""

import math
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)

WARM_UP = 0.3  # share of the steps in which the learning rate of "one-cycle" rises
FIRST_RATE = 0.04  # share of the highest learning rate with which it starts
ALWAYS = {"learning_rate", "batch_size", "epochs"}


class Recipe(BaseModel):
    """Training with cross entropy from fresh weights; the last epoch is the model.

    The study's LeNet5 is trained so, with the defaults.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    learning_rate: float = Field(default=1e-4, gt=0, description="highest of the schedule")
    batch_size: int = Field(default=128, ge=1, description="images per step")
    epochs: int = Field(default=20, ge=1, description="passes over the train split")
    optimizer: Literal["adam", "sgd"] = Field(
        default="adam", description="SGD has Nesterov's momentum"
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="of SGD")
    weight_decay: float = Field(default=0.0, ge=0, description="of every step, as L2 penalty")
    schedule: Literal["constant", "cosine", "one-cycle"] = Field(
        default="constant",
        description="the learning rate stays, falls to 0, or rises for 30 % of the steps and then "
        "falls to 0",
    )
    flip: bool = Field(default=False, description="mirror every second image")
    crop_padding: int = Field(
        default=0, ge=0, description="shift each image by up to so many pixels"
    )
    precision: Literal["32-true", "bf16-mixed"] = Field(
        default="32-true", description="of the training passes"
    )
    channels_last: bool = Field(
        default=False, description="keep images and weights channels last, faster where wide"
    )

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of a step, from 0, out of `steps`."""
        done = step / steps
        if self.schedule == "cosine":
            return self.learning_rate * (1 + math.cos(math.pi * done)) / 2
        if self.schedule == "one-cycle":
            rising = FIRST_RATE + (1 - FIRST_RATE) * done / WARM_UP
            return self.learning_rate * min(rising, (1 - done) / (1 - WARM_UP))
        return self.learning_rate

    # The identity of a subject hashes this: an option added later must not change those that do
    # not use it.
    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        return {
            name: value
            for name, value in handler(self).items()
            if name in ALWAYS or value != defaults[name]
        }
