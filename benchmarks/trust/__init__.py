"""The robustness benchmark: server and device under attacks, bad links and kills; `__main__` describes it."""
