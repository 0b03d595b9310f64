"""Where jobs are kept: one contract, and databases behind it."""
