"""The models: parameters, activations, forward and backward."""
