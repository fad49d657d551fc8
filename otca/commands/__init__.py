"""The commands of ``python -m otca``: one file each, with ``parser()`` and ``run(argv)``."""
