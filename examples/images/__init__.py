"""Work on photographs: the example that ``spinal demo`` runs."""
