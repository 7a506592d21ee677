"""Whether a tuned model is written as its base is, in the same order, sizes and bases; and the model so written."""
