"""Answers from several samples: PaCoRe (rounds of samples, then a synthesis) and the majority vote."""
