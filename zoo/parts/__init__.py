"""Building blocks of detectors: pyramids, proposals, heads, anchors, boxes, losses."""
