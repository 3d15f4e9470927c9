"""A codec for anybody's checkpoint: trained without labels, to match what the uncompressed model would answer."""
