"""The commands of `tofc-lab`, one module for each group in its help; `tofc_lab.cli` puts them together."""
