"""From detections to AP, mAP and top-1, with intervals."""
