"""From a manifest row to a model that loads, trains and predicts."""
