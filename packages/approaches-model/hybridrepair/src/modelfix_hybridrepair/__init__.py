"""HybridRepair for modelfix: few labels, spread over clusters, and semi-supervised fine-tuning."""
