"""Measure inference, training, memory, telemetry, and detections of a whole
dataset."""
