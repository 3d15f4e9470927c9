"""The training of nano: tower → cached features → decoder, each resumable."""
