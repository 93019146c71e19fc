"""How good a model is: losses of text, multiple-choice questions, and what lm_eval asks."""
