"""`python -m jax_impl.train`: `liquidnet train jax`. Twin: torch_impl. Truth: spec/config.py."""

import sys

if __name__ == "__main__":
    from tools.cli.main import main  # noqa: TID251  the command is that of `liquidnet train`

    sys.argv[1:1] = ["train", "jax"]
    main()
