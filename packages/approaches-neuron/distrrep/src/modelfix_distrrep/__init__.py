"""DISTRREP for modelfix: per-class repairs by Arachne, merged by risk-aware search."""
