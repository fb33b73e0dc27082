"""``python -m mnist_lightning``, or ``mnist-lightning``."""


def command() -> None:
    """Run the command that this process was started for."""
    try:
        from mnist_lightning.cli import main

        main()
    except KeyboardInterrupt:  # before `main` hears it
        raise SystemExit(130) from None


if __name__ == "__main__":
    command()
