"""All published results as one page that needs no network: `python -m reproduce.page` → results/index.html.

Made from the published files alone, byte for byte the same from the same files: tables with the rows of every cell, samples of
the same prompts and noise side by side, credit curves beneath them.

This is the last step of `make render`, and ends it with results/sha256.json, the hash of every published data file outside of
runs, and results/pictures.json, that of every figure, clip and page: `python -m otca verify results/` compares both. With --out
the page alone is written.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from eval.page.document import build_page
from eval.published import PICTURES, write_listings
from otca.files import HASHES, write_atomic
from otca.signals import run_command


def main(argv: list[str] | None = None) -> int:
    """Write the page; exit code 2 with one line where the results cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduce.page", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of published results (default: results)")
    parser.add_argument("--out", type=Path, help="file to write (default: index.html in that folder)")
    args = parser.parse_args(argv)

    def command() -> None:
        out = args.out or args.results / "index.html"
        page = build_page(args.results, out)
        write_atomic(out, page)
        print(f"written: {out} ({len(page.encode()) / 1e6:.1f} MB)")
        if args.out is None:
            write_listings(args.results)
            print(f"written: {args.results / HASHES}, {args.results / PICTURES}")

    return run_command("page", command)


if __name__ == "__main__":
    sys.exit(main())
