"""One vector-quantised index for each feature, and residual indices where its codeword misses."""
