"""The codec's training: transform and hyperprior learned through the frozen decoder, D + λR."""
