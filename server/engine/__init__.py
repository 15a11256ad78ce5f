"""The seam to the inference engine: the protocol, vLLM behind it, and a fake for tests."""
