"""What the answers of a router mean: each finding says what is wrong, what it costs and what to do. No I/O."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, TypeAlias

__all__ = ["Finding", "Severity", "examine"]

Record: TypeAlias = Mapping[str, Any]

# Below so many answers, or so many tokens, a share says nothing.
_REPORTS_MIN: Final = 20
_TOKENS_MIN: Final = 10_000
# Blocks leave a cache between a promise and its use; more than this share is something else.
_KEPT_SHARE_MIN: Final = 0.8
_UNSEEN_SHARE_MAX: Final = 0.2
_LAG_MAX: Final = 1_000


class Severity(StrEnum):
    """`error`: requests fail or the router is blind. `warning`: it knows too little. `note`: nothing to mend."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that an operator should know: about whom, what was seen, and what to do about it."""

    severity: Severity
    about: str
    what: str
    remedy: str


def examine(readiness: Record, workers: Sequence[Record], sources: Sequence[Record]) -> list[Finding]:
    """Read the answers of `/readyz`, `/workers` and `/sources`; the worst findings come first."""
    by_id = {str(worker["worker_id"]): worker for worker in workers}
    # Ranks without an event source are listed too; what that costs is said of their worker.
    heard = [source for source in sources if source["endpoint"]]
    findings = [
        *_router(readiness),
        *_models(readiness, workers, sources),
        *(finding for worker in workers for finding in _worker(worker)),
        *(finding for source in heard for finding in _source(source, by_id.get(str(source["worker_id"])))),
    ]
    return sorted(findings, key=lambda finding: list(Severity).index(finding.severity))


def _router(readiness: Record) -> Iterator[Finding]:
    reasons = readiness["reasons"]
    if "stopping" in reasons:
        yield Finding(Severity.ERROR, "router", "it is stopping", "nothing; start another one")
    if "no worker is registered" in reasons:
        remedy = "start it with --worker http://HOST:8000,events=tcp://HOST:5557, or POST /workers"
        yield Finding(Severity.ERROR, "router", "it knows no workers, so every request is answered with 503", remedy)
    if "no worker is schedulable" in reasons:
        what = "no worker can take requests, so every request is answered with 503"
        yield Finding(Severity.ERROR, "router", what, "mend the workers that are named below")


def _models(readiness: Record, workers: Sequence[Record], sources: Sequence[Record]) -> Iterator[Finding]:
    block_sizes = {source["worker_id"]: source["block_size"] for source in sources if source["applied_batches"]}
    for name, model in readiness["models"].items():
        theirs = [worker for worker in workers if name in worker["models"]]
        if str(model["prompts"]).startswith("byte-blocks") and any(each["kv_events_endpoints"] for each in theirs):
            what = "its prompts are not tokenised, so workers' events match none of them; only what was routed counts"
            remedy = f"give its tokenizer: --tokenizer {name}=PATH/tokenizer.json, or workers that have /tokenize"
            yield Finding(Severity.ERROR, f"model {name}", what, remedy)
        sizes = {block_sizes[each["worker_id"]] for each in theirs if each["worker_id"] in block_sizes}
        if len(sizes) > 1:
            listed = ", ".join(map(str, sorted(sizes)))
            what = f"its workers have blocks of {listed} tokens: each prompt is hashed for each size"
            yield Finding(
                Severity.WARNING, f"model {name}", what, "start them with the same --block-size (--page-size)"
            )


def _worker(worker: Record) -> Iterator[Finding]:
    about, health = f"worker {worker['worker_id']}", worker["health"]
    if worker["not_schedulable_reasons"]:
        what = f"it gets no requests: {', '.join(worker['not_schedulable_reasons'])}"
        if health["last_error"]:
            what += f"; its last check said: {health['last_error']}"
        draining = worker["state"] == "draining"
        # A worker behind a request plane has no URL of its own.
        asked = f"does {worker['url']}/health answer?" if worker["url"] else "does its engine answer? is it running?"
        remedy = "POST /workers/ID/resume when it may have requests" if draining else asked
        yield Finding(Severity.NOTE if draining else Severity.ERROR, about, what, remedy)
    if not worker["kv_events_endpoints"]:
        what = "it has no event source, so only what was routed to it counts as cached"
        remedy = "start it with KV events on, and add events=tcp://HOST:PORT to its --worker"
        yield Finding(Severity.WARNING, about, what, remedy)
    yield from _cached_tokens(about, worker["cached_tokens"])
    demoted = [str(rank["dp_rank"]) for rank in worker["ranks"] if rank.get("audit", {}).get("demoted")]
    if demoted:
        what = f"promises of rank {', '.join(demoted)} failed so often that its overlap is not believed now"
        yield Finding(
            Severity.WARNING, about, what, "see /decisions, and its source below; it is tried again by itself"
        )


def _cached_tokens(about: str, tokens: Record) -> Iterator[Finding]:
    """Whether the engine's own reports bear out what was believed."""
    if tokens["reports"] < _REPORTS_MIN or tokens["prompt"] < _TOKENS_MIN:
        return
    promised, actual = tokens["promised"], tokens["actual"]
    if promised >= _TOKENS_MIN and actual < _KEPT_SHARE_MIN * promised:
        what = f"it found {actual:,} of {promised:,} promised tokens in its cache ({actual / promised:.0%})"
        yield Finding(
            Severity.WARNING, about, what, "are events lost (see its source)? is the chat template the engine's?"
        )
    elif actual - promised > _UNSEEN_SHARE_MAX * tokens["prompt"]:
        what = f"it found {actual:,} tokens in its cache where {promised:,} were promised: the router misses most of it"
        remedy = "are its events heard (see its source)? are tokenizer and chat template the engine's?"
        yield Finding(Severity.WARNING, about, what, remedy)


def _source(source: Record, worker: Record | None) -> Iterator[Finding]:
    about = f"source {source['worker_id']}/{source['rank']} ({source['endpoint']})"
    if not source["connected"]:
        what = f"it is not connected: {source['last_error'] or 'nobody answered yet'}"
        remedy = "is the port open from here? does the engine bind tcp://*:PORT?"
        yield Finding(Severity.ERROR, about, what, remedy)
    elif source["applied_sequence"] is None and not source["messages"]:
        yield _silence(about, source, worker)
    if source["announced_rank"] not in (None, source["rank"]):
        what = f"what comes there is of rank {source['announced_rank']}: endpoints of ranks are mixed up"
        yield Finding(Severity.ERROR, about, what, "give the ranks' ports in the order of the ranks")
    unread = source["quarantined"] + source["malformed"] + sum(source["skipped"].values())
    if unread:
        what = f"{unread} batches or events could not be understood; last error: {source['last_error']}"
        remedy = f"who publishes there? kvrouter events tail {source['endpoint']}"
        yield Finding(Severity.WARNING, about, what, remedy)
    yield from _losses(about, source)
    if source["starved"]:
        what = "blocks of it were forgotten because the index is at its bound"
        yield Finding(Severity.WARNING, about, what, "raise --index-bytes-max")


def _silence(about: str, source: Record, worker: Record | None) -> Finding:
    """Connected, and nothing ever came: idle engines are silent, busy ones are not."""
    requests = 0 if worker is None else int(worker["requests"]["total"])
    if worker is None or not requests:
        what = "nothing has come yet; an engine without requests says nothing"
        return Finding(Severity.NOTE, about, what, "send a request with a prompt of some blocks, and look again")
    tokens, block_size = worker["cached_tokens"], int(source["block_size"] or worker["block_size"])
    if 0 < tokens["prompt"] < tokens["reports"] * block_size:
        what = f"nothing has come yet; prompts shorter than a block of {block_size} tokens leave nothing to tell"
        return Finding(Severity.NOTE, about, what, "send a request with a prompt of some blocks, and look again")
    topic = f"topic {source['topic']!r}" if source.get("topic") else "every topic"
    sent = "1 request" if requests == 1 else f"{requests} requests"
    what = f"nothing has come though its worker was sent {sent} (listening to {topic})"
    remedy = "are KV events and prefix caching on in the engine? is it the engine's topic and port?"
    return Finding(Severity.ERROR, about, what, remedy)


def _losses(about: str, source: Record) -> Iterator[Finding]:
    replay = source.get("replay_endpoint")
    where = (
        f"is {replay} open from here? " if replay else "give the engine a replay endpoint (replay=tcp://HOST:PORT); "
    )
    if source["gaps_lost"]:
        what = f"{source['gaps_lost']} of {source['gaps']} gaps could not be filled, so its blocks were forgotten"
        yield Finding(Severity.WARNING, about, what, f"{where}raise the engine's hwm and buffer_steps")
    if source["connected"] and source["state"] == "suspect":
        doubt = source["doubt"] or "the connection was made anew and nothing confirmed it yet"
        yield Finding(Severity.WARNING, about, f"it is suspect, its overlap is discounted: {doubt}", f"{where}or wait")
    if source["orphans"]:
        what = f"{source['orphans']} blocks wait for a beginning that was stored before the router listened"
        yield Finding(Severity.NOTE, about, what, "nothing; a replay, or the end of these prompts, heals it")
    if source["lag"] > _LAG_MAX:
        what = f"{source['lag']:,} batches are known and not applied yet"
        yield Finding(Severity.WARNING, about, what, "is the router's core busy? see kvrouter events stats --watch")
