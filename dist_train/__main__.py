"""``python -m dist_train`` is the console script ``dist-train``."""

from dist_train.cli import main

if __name__ == "__main__":
    main()
