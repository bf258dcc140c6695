"""VeRe for modelfix: linear relaxation finds the neuron whose repair promises most."""
