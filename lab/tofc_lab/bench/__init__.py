"""Seven public benchmarks, asked and scored as lmms-eval and VLMEvalKit do: `tofc-lab bench`."""
