"""INNER for modelfix: probes read each depth, routing marks the weights that are trained."""
