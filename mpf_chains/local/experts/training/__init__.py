"""From two lists of texts to an expert pair."""
