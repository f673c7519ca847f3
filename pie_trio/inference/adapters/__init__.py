"""LoRA adapters of a model: PEFT directories, and what they add to its linear layers."""
