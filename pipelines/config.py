"""One frozen dataclass a verb: its fields are the command line's options, its docstrings their help.

No torch and no Beam here, so that `--help` and a mistyped option answer at once.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from schemas.errors import ConfigError
from schemas.records import SIGNALS

STEP_SIZE = 2.0  # of those tried the best correlated with what is measured on the demo: 0.58 (bench/predict.py)
TextQuery = Literal["auto", "prompt_target", "subject_object"]


def _require(condition: bool, option: str, expected: str, found: object) -> None:
    if not condition:
        raise ConfigError(f"--{option}: expected {expected}, found {found!r}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a small causal language model whose data order has holes, so that removals move nothing else."""

    corpus: str
    """Corpus files: a glob of .jsonl(.gz|.zst), .parquet or .txt, or a folder that `clean` wrote."""
    output: str
    """Folder for the checkpoints."""
    like: str = ""
    """A checkpoint to repeat on this corpus: its tokenizer, shape, schedule and data order, but for --seed."""
    layers: int = 3
    """Transformer blocks."""
    width: int = 128
    """Hidden size."""
    heads: int = 4
    """Attention heads."""
    context: int = 128
    """Context length in tokens; longer examples are cut, and counted."""
    vocab_size: int = 4096
    """Size of the byte-level BPE vocabulary that is trained on the corpus."""
    epochs: int = 20
    """Passes over the corpus."""
    batch_examples: int = 64
    """Mean number of examples a batch; the batches an epoch follow from it."""
    learning_rate: float = 3e-3
    """Highest learning rate (AdamW, linear warm-up, cosine down to a tenth)."""
    num_checkpoints: int = 3
    """Checkpoints kept, evenly spaced, the last step among them."""
    id_field: str = "id"
    """Name of the corpus' id field."""
    text_field: str = "text"
    """Name of the corpus' text field."""
    seed: int | None = None
    """Seed of the initial weights and of the data order; by default that of --like, else 0."""
    quiet: bool = False
    """No progress bars and no summary."""

    def __post_init__(self) -> None:
        for option in ("layers", "width", "heads", "epochs", "batch_examples", "num_checkpoints"):
            _require(getattr(self, option) >= 1, option, "at least 1", getattr(self, option))
        _require(self.width % self.heads == 0, "width", f"a multiple of --heads ({self.heads})", self.width)
        _require(self.context >= 8, "context", "at least 8", self.context)
        _require(self.vocab_size >= 300, "vocab_size", "at least 300 (256 bytes and some)", self.vocab_size)
        _require(self.learning_rate > 0, "learning_rate", "more than 0", self.learning_rate)


@dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """Index a corpus: BM25, dense vectors and gradient features, shard by shard, with Apache Beam."""

    corpus: str
    """Corpus files: a glob of .jsonl(.gz|.zst), .parquet or .txt, or a folder that `clean` wrote."""
    output: str
    """Folder for the index."""
    checkpoints: tuple[str, ...] = ()
    """Checkpoints of the model for the gradient signal: folders (what `train` wrote too), hub names or .gguf files."""
    encoder: str = ""
    """Encoder for the dense signal: any Hugging Face encoder by name or folder."""
    embedding_field: str = ""
    """Corpus field that holds each record's vector, for the dense signal; then --encoder embeds facts alone."""
    signals: str = ""
    """Comma-separated among bm25, dense, gradient; by default bm25 and what an encoder or checkpoints are given for."""
    tokenizer: str = "word"
    """BM25's tokens: `word`, or the subwords of a Hugging Face tokenizer by name or folder (Chinese, code)."""
    stemming: str = ""
    """A Snowball language (such as `english`) to stem words with; only with --tokenizer word."""
    max_tokens: int = 256
    """Longest passage, in tokens of the model (else of the encoder, else words); longer documents are split."""
    overlap: int = 32
    """Tokens that consecutive passages of a document share."""
    projection_dim: int = 0
    """Rows of each random projection: a layer's feature has at most the square of it. 0: of trackstar 16; of kfac
    the largest power of two from 16 to 256 with which a passage's features are at most 65,536 numbers, or 16."""
    layers: float = 1.0
    """Share of the model's blocks whose gradients are taken, from the top; below 1 without the embeddings."""
    feature_dtype: Literal["float16", "float32", "int8", "none"] = "float16"
    """How gradient features are stored; int8 has a scale a row and layer; none stores nothing, for trace --scan."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the model computes gradients in; sums over tokens are float32 in both."""
    device: str = "auto"
    """Where the model runs: auto (a GPU where there is one), cpu or cuda."""
    batch_tokens: int = 1024
    """Padded tokens a batch at most: bounds the memory of a pass."""
    gradients: Literal["kfac", "trackstar"] = "kfac"
    """What they are: `kfac`, of the blocks' layers, from gradients of the logits at unit length, whitened from both
    sides of a layer, with a norm a layer; or `trackstar`, as the two options below say."""
    optimizer_correction: Literal["auto", "estimate", "none"] = "auto"
    """Of trackstar, second moments: the optimizer state's, else (or always) estimated from a sample, or none."""
    curvature: Literal["mixed", "none"] = "mixed"
    """Of trackstar: whether gradients are whitened by their second moments, mixed of corpus and queries."""
    min_coverage: float = 0.9
    """Least share of the model's trainable parameters whose gradients can be tracked."""
    passages_per_shard: int = 10_000
    """Passages a shard: the unit of work, of memory and of resuming."""
    num_pseudo_facts: int = 200
    """Of trackstar: facts cut from the corpus itself, whose gradients tell the curvature of questions."""
    max_dead_fraction: float = 0.01
    """Share of records that may be refused before the job fails."""
    id_field: str = "id"
    """Name of the corpus' id field."""
    text_field: str = "text"
    """Name of the corpus' text field."""
    update: bool = False
    """Add the corpus' new files to the index at --output, which tells every other setting."""
    dry_run: bool = False
    """Print what the job will take (seconds, memory, disk), measured on a sample, and write nothing."""
    seed: int = 0
    """Seed of the projections and of the pseudo-facts."""
    quiet: bool = False
    """No progress bars and no summary."""

    def __post_init__(self) -> None:
        _require(not (self.update and self.dry_run), "dry_run", "it without --update", True)
        if self.update:
            return  # what was left out here is the index's, which was checked when it was made
        unknown = set(self.signal_names) - set(SIGNALS)
        _require(not unknown, "signals", f"some of {', '.join(SIGNALS)}", ",".join(sorted(unknown)))
        _require(len(set(self.signal_names)) == len(self.signal_names), "signals", "each once", self.signals)
        _require("bm25" in self.signal_names, "signals", "bm25 among them", self.signals)
        vectors = bool(self.encoder or self.embedding_field)
        _require("dense" not in self.signal_names or vectors, "encoder", "one, or --embedding_field, for dense", "")
        without = "dense" in self.signal_names or not self.embedding_field
        _require(without, "signals", "dense among them, with --embedding_field", self.signals)
        _require("gradient" not in self.signal_names or bool(self.checkpoints), "checkpoints", "some for gradient", ())
        _require(not self.stemming or self.tokenizer == "word", "stemming", "--tokenizer word", self.tokenizer)
        _require(self.max_tokens >= 8, "max_tokens", "at least 8", self.max_tokens)
        _require(0 <= self.overlap < self.max_tokens, "overlap", "0 to --max_tokens - 1", self.overlap)
        _require(0 < self.layers <= 1, "layers", "more than 0, at most 1", self.layers)
        _require(0 <= self.min_coverage <= 1, "min_coverage", "0 to 1", self.min_coverage)
        for option, plain in (("optimizer_correction", "auto"), ("curvature", "mixed")):
            given = getattr(self, option)
            _require(self.gradients == "trackstar" or given == plain, option, "it with --gradients trackstar", given)
        _require(self.projection_dim >= 0, "projection_dim", "at least 0", self.projection_dim)
        for option in ("passages_per_shard", "num_pseudo_facts", "batch_tokens"):
            _require(getattr(self, option) >= 1, option, "at least 1", getattr(self, option))
        _require(0 <= self.max_dead_fraction <= 1, "max_dead_fraction", "0 to 1", self.max_dead_fraction)

    @property
    def signal_names(self) -> tuple[str, ...]:
        """The signals in their fixed order."""
        if self.signals:
            given = [name.strip() for name in self.signals.split(",")]
            return tuple(sorted(given, key=lambda n: SIGNALS.index(n) if n in SIGNALS else -1))
        present = {
            "bm25": True,
            "dense": bool(self.encoder or self.embedding_field),
            "gradient": bool(self.checkpoints),
        }
        return tuple(name for name in SIGNALS if present[name])


@dataclass(frozen=True, kw_only=True)
class TraceConfig:
    """Rank the passages behind each fact, or each audit request, by every signal of the index and by their fusion."""

    index: str
    """Folder of the index."""
    output: str
    """Folder for the rankings."""
    facts: str = ""
    """JSONL of facts: prompt + target, subject + relation + object (with a template), or sentence + explain."""
    requests: str = ""
    """Audit requests (.jsonl or .yaml) in place of facts; the model is asked first whether it says what they say."""
    top_k: int = 100
    """Candidates kept a fact from each signal; all signals' scores are given for all of them."""
    rerank: int = 0
    """Best candidates a fact whose whole gradients are multiplied exactly, word by word (signal gradient_exact)."""
    scan: bool = False
    """Make the passages' gradients anew in one pass instead of reading stored ones (index --feature_dtype none)."""
    where: str = ""
    """Rank only passages whose source or file matches, as source=PATTERN or file=PATTERN (* and ? as in a shell)."""
    text_query: TextQuery = "auto"
    """What bm25 asks: subject + object where the fact has both (auto), or always one; dense asks prompt + target."""
    quiet: bool = False
    """No progress bars and no summary."""

    def __post_init__(self) -> None:
        given = ", ".join(filter(None, (self.facts, self.requests)))
        _require(bool(self.facts) != bool(self.requests), "facts", "either facts or --requests", given)
        _require(self.top_k >= 1, "top_k", "at least 1", self.top_k)
        _require(self.rerank >= 0, "rerank", "0 or more", self.rerank)
        given = not self.where or self.where.partition("=")[0] in ("source", "file")
        _require(given, "where", "source=PATTERN or file=PATTERN", self.where)


@dataclass(frozen=True, kw_only=True)
class FlagConfig:
    """Propose removals from rankings of facts or audit requests, and as many random examples as a control."""

    rankings: str
    """Folder that `trace` wrote."""
    output: str
    """Folder for removals.jsonl and control_removals.jsonl."""
    max_per_fact: int = 5
    """Most examples proposed for one fact."""
    min_coverage: float = 0.9
    """Of facts: the share of the query's word weight (idf) that a passage must hold, 0 to 1; requests have a policy."""
    policy: str = ""
    """Of audit requests: a YAML file that says what to propose by category, scores and labels; one is built in."""
    scorers: tuple[str, ...] = ()
    """Of audit requests: what labels passages: pii, secrets, hf:MODEL, python:MODULE:FUNCTION, each with @THRESHOLD."""
    duplicates: float = 0.5
    """Of audit requests: least similarity of near-duplicates, which stand or fall together; 0 looks for none."""
    approve: Literal["none", "all"] = "none"
    """`all` approves every proposal but what is to be judged; else a person sets `decision` in removals.jsonl."""
    by: str = ""
    """Who approves, for the record; needed with --approve all."""
    seed: int = 0
    """Seed of the control's random choice."""
    quiet: bool = False
    """No progress bars and no summary."""

    def __post_init__(self) -> None:
        _require(self.max_per_fact >= 1, "max_per_fact", "at least 1", self.max_per_fact)
        _require(0 <= self.min_coverage <= 1, "min_coverage", "0 to 1", self.min_coverage)
        _require(self.approve == "none" or bool(self.by), "by", "the name of who approves, with --approve all", "")


@dataclass(frozen=True, kw_only=True)
class ReviewConfig:
    """Decide about what `flag` proposed: on a page that this machine alone can open, or by an edited file."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder that `flag` wrote."""
    port: int = 0
    """Port on 127.0.0.1; 0 takes a free one."""
    by: str = ""
    """Who decides, for the ledger; on the page, who is logged in if it is left out. --take needs it."""
    reviewers: str = ""
    """Further reviewers, comma-separated: each gets an address of their own."""
    take: str = ""
    """An edited copy of the run's removals.jsonl: its decisions go to the ledger, and no page is served. `proposed` is
    no decision and leaves what stands; `undone` takes back what the ledger holds about the example."""
    quiet: bool = False
    """No summary."""

    def __post_init__(self) -> None:
        _require(0 <= self.port <= 65535, "port", "0 to 65535", self.port)
        _require(not self.take or bool(self.by), "by", "the name of who decides, with --take", "")
        _require(not (self.take and self.reviewers), "reviewers", "no further reviewers, with --take", self.reviewers)


@dataclass(frozen=True, kw_only=True)
class CleanConfig:
    """Write a new version of a corpus without the approved removals, every other record byte for byte."""

    corpus: str
    """Corpus files: a glob, or a folder that `clean` or `restore` wrote."""
    removals: str
    """A reviewed run, or removals.jsonl: what is approved in it is acted on; or a list (--removals_are)."""
    output: str
    """Folder for the new version (corpus/), what was taken out (removed/) and its exports (attributes/)."""
    removals_are: Literal["decisions", "ids", "sha256", "domains"] = "decisions"
    """What --removals holds: decisions, or a third party's list, one a line, of ids, texts' SHA-256 sums or domains."""
    by: str = ""
    """Who answers for a list: it goes into what was removed. Decisions name theirs themselves."""
    reason: str = ""
    """Why what is on a list goes; by default that it is on it."""
    url_field: str = "url"
    """Name of the field whose URL's host is looked up in a list of domains."""
    erase: bool = False
    """Keep no text and no bytes of what is taken out, only ids and hashes: it cannot be restored from this folder."""
    max_dead_fraction: float = 0.0
    """Share of records that may be unreadable; they are in neither part, but in dead_letters/."""
    id_field: str = "id"
    """Name of the corpus' id field."""
    text_field: str = "text"
    """Name of the corpus' text field."""
    quiet: bool = False
    """No progress bars and no summary."""

    def __post_init__(self) -> None:
        _require(0 <= self.max_dead_fraction <= 1, "max_dead_fraction", "0 to 1", self.max_dead_fraction)
        if self.removals_are == "decisions":
            for option in ("by", "reason"):
                found = getattr(self, option)
                _require(not found, option, "nothing beside --removals_are decisions, which name their own", found)
        else:
            _require(bool(self.by.strip()), "by", "the name of who answers for the list", self.by)


@dataclass(frozen=True, kw_only=True)
class DiffConfig:
    """Compare two versions of a corpus: records added, removed, redacted and kept, and the words lost a source."""

    before: str
    """The earlier version: a folder that `clean` or `restore` wrote, or the files that it was made of (a glob)."""
    after: str
    """The later version, likewise."""
    id_field: str = "id"
    """Name of the corpus' id field."""
    text_field: str = "text"
    """Name of the corpus' text field."""
    quiet: bool = False
    """No progress bars and no table."""


@dataclass(frozen=True, kw_only=True)
class RestoreConfig:
    """Put removed and redacted records back at their places, as a new version of a corpus."""

    corpus: str
    """A folder that `clean` wrote, without --erase."""
    output: str
    """Folder for the new version."""
    ids: tuple[str, ...] = ()
    """Ids of the records to put back; without any: all that this version took out."""
    quiet: bool = False
    """No progress bars and no summary."""


@dataclass(frozen=True, kw_only=True)
class PurgeConfig:
    """Take the approved removals out of an index with everything made from them, and write a certificate."""

    index: str
    """Folder of the index; it is rewritten in place."""
    removals: str
    """A run that was reviewed, or removals.jsonl with decisions; only approved ones are acted on."""
    certificate: str = ""
    """File for the certificate; by default beside the index, INDEX.purged-GENERATION.json."""
    quiet: bool = False
    """No progress bars and no summary."""


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Measure what models know before, after and in the control; trains where corpora are given, or predicts."""

    before: tuple[str, ...]
    """Checkpoints trained on the whole corpus, one a seed."""
    facts: str
    """JSONL of the facts that should be gone; each of several prompts (variants) is asked."""
    retain_facts: str
    """JSONL of the facts that should stay."""
    output: str
    """Folder for the answers and their summary."""
    after: tuple[str, ...] = ()
    """Checkpoints trained without the removals, in the order of --before; or give --after_corpus."""
    control: tuple[str, ...] = ()
    """Checkpoints trained without as many random examples, in the order of --before; or give --control_corpus."""
    after_corpus: str = ""
    """Corpus without the removals: trained on here as `train --like BEFORE` does."""
    control_corpus: str = ""
    """Corpus without the random examples: trained on here likewise."""
    seeds: str = ""
    """Comma-separated seeds to train all three arms with, as 0,1,2; with --before_corpus and one --before."""
    before_corpus: str = ""
    """With --seeds: the corpus that --before was trained on, trained on here for every seed but its own."""
    held_out: str = ""
    """Corpus that no model was trained on: its loss per token is measured in every arm."""
    predict: bool = False
    """Predict instead of measuring: one ascent step on --removals against one on --control_removals."""
    corpus: str = ""
    """With --predict: the corpus that holds the texts of the removals."""
    removals: str = ""
    """With --predict: removals.jsonl; approved ones count."""
    control_removals: str = ""
    """With --predict: control_removals.jsonl, of as many random examples."""
    step_size: float = STEP_SIZE
    """With --predict: length of the step, in learning rates of the checkpoint (calibrated: bench/predict.py)."""
    tokens_per_batch: float = 0.0
    """With --predict: tokens a training step took, where the checkpoint has no record of it."""
    id_field: str = "id"
    """Name of the id field of --held_out and --corpus."""
    text_field: str = "text"
    """Name of the text field of --held_out and --corpus."""
    quiet: bool = False
    """No progress bars and no summary."""

    def __post_init__(self) -> None:
        for name in ("before", "after", "control"):
            listed = isinstance(self._of(name), tuple)
            _require(listed, name, "a tuple of checkpoints", self._of(name))
        _require(bool(self.before), "before", "at least one checkpoint", self.before)
        inputs = ("corpus", "removals", "control_removals")
        if self.predict:
            for name in ("after", "control", "after_corpus", "control_corpus", "seeds", "before_corpus"):
                _require(not self._of(name), name, "nothing with --predict, which trains no model", self._of(name))
            for name in inputs:
                _require(bool(self._of(name)), name, "a file, with --predict", self._of(name))
            _require(self.step_size > 0, "step_size", "more than 0", self.step_size)
            _require(self.tokens_per_batch >= 0, "tokens_per_batch", "at least 0", self.tokens_per_batch)
            return
        for name in inputs:
            _require(not self._of(name), name, "it with --predict alone", self._of(name))
        if self.seeds:
            self._require_seeds()
        _require(bool(self.seeds) or not self.before_corpus, "before_corpus", "it with --seeds", self.before_corpus)
        for name in ("after", "control"):
            given = [bool(self._of(name)), bool(self._of(f"{name}_corpus"))]
            _require(sum(given) == 1, name, f"either a checkpoint or --{name}_corpus", "both" if all(given) else "")
            equal = not self._of(name) or len(self._of(name)) == len(self.before)
            expected = f"as many checkpoints as --before has, {len(self.before)}"
            _require(equal, name, expected, len(self._of(name)))

    def _of(self, name: str) -> Any:
        return getattr(self, name)

    def _require_seeds(self) -> None:
        """Raises ConfigError unless the seeds are different numbers and every arm can be trained with them."""
        given = [seed.strip() for seed in self.seeds.split(",")]
        numbers = all(seed.isdecimal() for seed in given)
        expected = "different whole numbers, as 0,1,2"
        _require(numbers and len(set(map(int, given))) == len(given), "seeds", expected, self.seeds)
        _require(len(self.before) == 1, "before", "one checkpoint, with --seeds", self.before)
        for name in ("after", "control"):
            _require(not self._of(name), name, f"--{name}_corpus instead, with --seeds", self._of(name))
        _require(bool(self.before_corpus), "before_corpus", "the corpus that --before was trained on, with --seeds", "")

    @property
    def seed_numbers(self) -> tuple[int, ...]:
        """What --seeds lists; nothing where it is not given."""
        return tuple(int(seed) for seed in self.seeds.split(",")) if self.seeds else ()


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Write the audit's reports: a page for each request and one over all, and the evidence for a spreadsheet."""

    run: tyro.conf.Positional[str]
    """Folder that `flag` wrote for audit requests, with what was decided since."""
    output: str
    """Folder for index.html, a page for each request, and evidence.csv."""
    cleaned: str = ""
    """The corpus that `clean` wrote: which removals were carried out in it."""
    certificate: str = ""
    """The certificate that `purge` wrote: which files of the index are gone."""
    verification: str = ""
    """Folder that `verify` wrote: what was measured after the removal."""
    language: Literal["en", "de"] = "en"
    """Language of the reports; what comes from the corpus stays as it is."""
    quiet: bool = False
    """No progress bars and no summary."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Print how well rankings find known proponents, as one JSON object."""

    rankings: str
    """Folder that `trace` wrote."""
    facts: str
    """JSONL of the facts with their known proponents."""
    quiet: bool = False
    """No progress bars and no summary."""


@dataclass(frozen=True, kw_only=True)
class ExplainConfig:
    """Print the chain of one example: from the request over evidence and decisions to the bytes that are gone."""

    run: tyro.conf.Positional[str]
    """Folder that `flag` wrote."""
    id: str
    """The example's id."""
    cleaned: tuple[str, ...] = ()
    """Corpora that `clean` wrote with this run's decisions."""
    certificates: tuple[str, ...] = ()
    """Certificates that `purge` wrote."""
    quiet: bool = False
    """No effect: what is printed is all there is."""


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Run the whole loop on a small corpus of real facts with planted false claims, and write an HTML report."""

    output: str = "demo-output"
    """Folder for everything, report.html and summary.json among it; an earlier demo there is replaced."""
    seed: int = 0
    """Seed of the corpus, the training and the control."""
    quiet: bool = False
    """No progress bars and no summary."""
