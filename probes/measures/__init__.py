"""What is read off activations: tensors in, tensors out."""
