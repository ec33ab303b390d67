"""Modules and tensors: what networks are made of, calibration, rounding, losses."""
