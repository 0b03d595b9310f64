"""``python -m spinal`` is the command line."""

from spinal.cli import main

if __name__ == "__main__":
    main()
