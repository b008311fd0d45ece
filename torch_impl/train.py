"""`python -m torch_impl.train`: `liquidnet train torch`. Twin: jax_impl. Truth: spec/config.py."""

import sys

if __name__ == "__main__":
    from tools.cli.main import main  # noqa: TID251  the command is that of `liquidnet train`

    sys.argv[1:1] = ["train", "torch"]
    main()
