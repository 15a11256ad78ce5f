"""What a training came to: base beside result, on held-out examples and on general abilities; one Report."""
