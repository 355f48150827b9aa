"""`python -m petalbus.daemon` is `petalbus`. Read on in cli/app.py (all commands) and runtime/daemon.py (`up`)."""

from petalbus.daemon.cli import main

if __name__ == "__main__":
    main()
