"""`proponent VERB ...`, the same as `python -m pipelines VERB ...`; arguments after `--` go to Beam unread."""

import importlib
import json
import logging
import sys

import tyro

from pipelines import config as configs
from schemas.errors import ConfigError, ProponentError
from schemas.visible import visible

VERBS = {
    "train": configs.TrainConfig,
    "index": configs.IndexConfig,
    "trace": configs.TraceConfig,
    "flag": configs.FlagConfig,
    "review": configs.ReviewConfig,
    "clean": configs.CleanConfig,
    "diff": configs.DiffConfig,
    "restore": configs.RestoreConfig,
    "purge": configs.PurgeConfig,
    "verify": configs.VerifyConfig,
    "report": configs.ReportConfig,
    "evaluate": configs.EvaluateConfig,
    "explain": configs.ExplainConfig,
    "demo": configs.DemoConfig,
}
BEAM_VERBS = ("index", "trace", "flag", "clean", "purge")


class VisibleFormatter(logging.Formatter):
    """A message may name what comes from a corpus: nothing in it acts on the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


def usage() -> str:
    lines = [f"  {verb:9} {config.__doc__.splitlines()[0]}" for verb, config in VERBS.items()]
    return "\n".join(
        [
            "usage: proponent VERB [options] [-- Beam options]",
            "",
            *lines,
            "",
            "proponent VERB --help lists its options.",
        ]
    )


def run_verb(verb: str, arguments: list[str], beam_args: tuple[str, ...]) -> None:
    """Parses the verb's options and runs it; only the chosen verb's libraries are loaded."""
    config = tyro.cli(
        VERBS[verb],
        args=arguments,
        prog=f"proponent {verb}",
        use_underscores=True,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    if beam_args and verb not in BEAM_VERBS:
        raise ConfigError(f"{verb} runs without Beam: expected nothing after --, found {' '.join(beam_args)}")
    from pipelines import progress

    if verb in BEAM_VERBS:  # a runner that cannot be had is refused before any model is loaded
        importlib.import_module("pipelines.runners").make_pipeline(beam_args)
    progress.set_quiet(config.quiet)
    logging.getLogger("pipelines").setLevel(logging.WARNING if config.quiet else logging.INFO)
    module = importlib.import_module(f"pipelines.{verb}")
    if verb == "index" and config.update:
        names = {argument[2:].split("=")[0].replace("-", "_") for argument in arguments if argument.startswith("--")}
        importlib.import_module("pipelines.update").run(config, beam_args, names)
    elif verb in BEAM_VERBS:
        result = module.run(config, beam_args)
        if getattr(config, "dry_run", False):
            print(json.dumps(result))
    elif verb == "verify":
        module.run(config, importlib.import_module("pipelines.train").run)
    elif verb in ("evaluate", "diff", "explain"):
        module.print_result(module.run(config))
    else:
        module.run(config)


def main(argv: list[str] | None = None) -> int:
    """The verb's exit code: 0 done, 1 a bug, else that of the error (schemas/errors.py)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(VisibleFormatter("%(levelname)s %(name)s: %(message)s"))
    # Beam says so at every import where its gcp extra is not installed, which is no news to who runs locally.
    handler.addFilter(lambda record: not record.getMessage().startswith("apitools not found"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    verb, *rest = arguments
    if verb not in VERBS:
        print(f"proponent: expected a verb ({', '.join(VERBS)}), found '{verb}'", file=sys.stderr)
        return 2
    beam_args: tuple[str, ...] = ()
    if "--" in rest:
        cut = rest.index("--")
        rest, beam_args = rest[:cut], tuple(rest[cut + 1 :])
    try:
        run_verb(verb, rest, beam_args)
    except ProponentError as error:
        print(visible(f"proponent {verb}: {error}"), file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
