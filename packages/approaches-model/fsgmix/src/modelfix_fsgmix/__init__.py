"""FSGMix: fine-tuning on augmented training images whose augmentation a few failures guide."""

from modelfix_fsgmix.approach import FSGMix, FSGMixConfig

__all__ = ["FSGMix", "FSGMixConfig"]
