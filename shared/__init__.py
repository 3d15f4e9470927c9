"""What both machines must agree on, to the bit: the model's shape, the codec, the packet, the wire."""
