"""The small models: LoRA variants that read the same tokens as rows of one forward pass."""
