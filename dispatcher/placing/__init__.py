"""Services: what shall run, the machine that each is placed at, and what is done when that dies."""
