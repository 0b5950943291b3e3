"""LoRA adapters as one step: taken out of a fine-tuned model, folded into a base, cut to another rank."""
