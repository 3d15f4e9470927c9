"""PaCoRe for nano: sampled answers, training of the decoder on synthesis prompts, and the report."""
