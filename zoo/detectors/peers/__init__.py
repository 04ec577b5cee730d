"""Detectors of other libraries, behind our Detector interface, for comparison."""
