"""Whether neurons and heads stand where they stood, and the pair with them put back."""
