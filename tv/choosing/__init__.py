"""How much of a tuning vector to keep, and where: scales chosen on half of the prompts, tested on the rest."""
