"""`python -m bench.quality TRACK --out OUT`: measures a track, and prints one JSON object, one line, last."""

import argparse
import importlib
import json
import logging
import sys
from pathlib import Path

from bench.quality import peers, report
from bench.quality.data import DEFAULT, load
from bench.quality.kept import open_output
from schemas.errors import ProponentError

TRACKS = {
    "A1": "text signals and their fusion over the whole corpus",
    "A2": "every signal, gradients among them, over the sentences that an LM was trained on, on facts it answers",
    "B": "which facts are lost when what a signal ranks first is removed and the LM trained anew",
    "C": "facts told in words that share none with what is asked",
    "D": "agreement with retraining: the linear datamodeling score, and one step on what is ranked first (tail-patch)",
}
WITH_PEERS = ("A2", "D")


def parse(arguments: list[str]) -> argparse.Namespace:
    tracks = "\n".join(f"  {name}  {what}" for name, what in TRACKS.items())
    parser = argparse.ArgumentParser(
        prog="python -m bench.quality",
        description=f"How well the product finds known proponents.\n\ntracks:\n{tracks}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("track", metavar="TRACK", choices=TRACKS, help=" or ".join(TRACKS))
    parser.add_argument("--data", type=Path, default=DEFAULT, help="a folder with a corpus and facts (T-REx)")
    parser.add_argument("--setting", choices=("small", "full"), default="small", help="how much is measured")
    parser.add_argument("--out", type=Path, required=True, help="a new folder for the results and what is kept")
    parser.add_argument("--resume", action="store_true", help="use again what is kept in --out and still fits")
    for package in peers.PACKAGES:
        help_text = f"the folder with the programs of {package}'s environment, a peer of {', '.join(WITH_PEERS)}"
        parser.add_argument(f"--{package}", type=Path, help=help_text)
    options = parser.parse_args(arguments)
    options.programs = {name: getattr(options, name) for name in peers.PACKAGES if getattr(options, name)}
    if options.programs and options.track not in WITH_PEERS:
        names = ", ".join(f"--{name}" for name in options.programs)
        parser.error(f"{names}: expected it with {', '.join(WITH_PEERS)}, found it with {options.track}")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    try:
        open_output(options.out, options.resume)
        data = load(options.data, options.out)
        track = importlib.import_module(f"bench.quality.{options.track.lower()}")
        given = {"programs": options.programs} if options.track in WITH_PEERS else {}
        result = track.run(options.setting, data, options.out, **given)
    except ProponentError as error:
        print(f"bench.quality {options.track}: {error}", file=sys.stderr)
        return error.exit_code
    report.write(result, options.out)
    print(json.dumps(result), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
