"""Plain LoRA of adapters that are none: DoRA, AdaLoRA, PiSSA and its like, mixed ranks; with the error measured."""
