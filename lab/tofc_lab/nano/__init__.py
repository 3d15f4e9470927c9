"""The training of nano: tower → cached features → decoder → codec → checkpoint; an interrupted step is resumed."""
