"""Training of a codec: transform and context model, learned through the frozen decoder to minimise D + λR."""
