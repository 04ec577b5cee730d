"""Clocks, counters and the passes they time: inference, training, memory, telemetry, detections of a whole
dataset."""
