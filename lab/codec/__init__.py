"""The codec's training: transform and context model learned through the frozen decoder, D + λR."""
