"""Workers' load as the router learns it: from engines' own pages, from our publishers, per rank, with its age."""

import asyncio
import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from kvrouter.events import Source
from kvrouter.events.load import LoadReport, load_record
from kvrouter.service.load_reports import PATHS, TOLD_SECONDS, LoadReports
from kvrouter.service.prometheus_load import RankCounters, RankFigures, read_page
from kvrouter.service.proxy import ProxyLimits, Response, UpstreamError, UpstreamPool, fetch
from kvrouter.service.workers import Worker
from kvrouter_publishers import ZmqEventPublisher
from tests.replay.serving import engine
from tests.service.inprocess import InProcess

REFUSED = UpstreamError("cannot connect: Connection refused", outcome="connect_failed")

VLLM = b"""\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 5.0
vllm:num_requests_waiting{engine="0",model_name="m"} 1.0
vllm:num_requests_waiting{engine="1",model_name="m"} 0.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 77.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.5
vllm:prefix_cache_queries_total{engine="0",model_name="m"} 1000.0
vllm:prefix_cache_queries_created{engine="0",model_name="m"} 1.78e+09
vllm:prefix_cache_hits_total{engine="0",model_name="m"} 400.0
vllm:cache_config_info{block_size="16",cache_dtype="auto",engine="0",num_gpu_blocks="2000",sliding_window="None"} 1.0
vllm:cache_config_info{block_size="16",cache_dtype="auto",engine="1",num_gpu_blocks="1000",sliding_window="None"} 1.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.001",model_name="m"} 12.0
python_gc_objects_collected_total{generation="0"} 5.0
"""
OLD_VLLM = b"""\
vllm:num_requests_running{model_name="m"} 2.0
vllm:num_requests_waiting{model_name="m"} 4.0
vllm:gpu_cache_usage_perc{model_name="m"} 0.75
vllm:gpu_prefix_cache_queries_total{model_name="m"} 10.0
vllm:gpu_prefix_cache_hits_total{model_name="m"} 5.0
vllm:cache_config_info{block_size="16",num_gpu_blocks="100"} 1.0
"""
SGLANG = b"""\
sglang:num_running_reqs{dp_rank="0",engine_type="unified",model_name="m",pp_rank="0",tp_rank="0"} 8.0
sglang:num_running_reqs{dp_rank="0",engine_type="unified",model_name="m",pp_rank="0",tp_rank="1"} 99.0
sglang:num_queue_reqs{dp_rank="0",model_name="m",priority="",tp_rank="0"} 3.0
sglang:num_queue_reqs{dp_rank="0",model_name="m",priority="1",tp_rank="0"} 1.0
sglang:token_usage{dp_rank="0",model_name="m",tp_rank="0"} 0.28
sglang:cache_hit_rate{dp_rank="0",model_name="m",tp_rank="0"} 0.0075
sglang:num_used_tokens{dp_rank="0",model_name="m",tp_rank="0"} 6400.0
sglang:cache_config_info{dp_rank="0",page_size="64",num_pages="500",tp_rank="0"} 1.0
sglang:max_total_num_tokens{dp_rank="0",model_name="m",tp_rank="0"} 32000.0
"""
NEW_SGLANG = b"""\
sglang:num_running_reqs{dp_rank="1",tp_rank="0"} 8
sglang:num_used_tokens{dp_rank="1",tp_rank="0"} 640
sglang:page_size{dp_rank="1",tp_rank="0"} 64
sglang:num_pages{dp_rank="1",tp_rank="0"} 500
"""
TRTLLM = b"trtllm_num_requests_running 4\ntrtllm_kv_cache_utilization 0.5\ntrtllm_kv_cache_max_blocks 200\n"


class Pages:
    """Answers questions as told, and notes them."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers = answers
        self.asked: list[str] = []

    async def __call__(self, worker: Worker, path: str, *, timeout_seconds: float, max_bytes: int) -> Response:
        """Give the answer for a path; 404 for any other."""
        self.asked.append(path)
        answer = self.answers.get(path, 404)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, int):
            return Response(answer, [], b"")
        return Response(200, [], answer if isinstance(answer, bytes) else json.dumps(answer).encode())


@pytest.fixture
def service() -> InProcess:
    """A service without workers."""
    return InProcess()


def reports_of(service: InProcess, pages: Any, interval: float = 0.01) -> LoadReports:
    """Build the reports of a service's fleet; the time is the service's."""
    return LoadReports(
        service.service.registry,
        pages,
        interval_seconds=interval,
        timeout_seconds=30.0,
        clock=service.clock,
        jitter=random.Random(1),
        wall_clock=lambda: 5.0,
    )


def ask(service: InProcess, reports: LoadReports, until: Callable[[], object]) -> None:
    """Run the questions, on a clock that runs a hundred times too fast, until something is so."""

    async def run() -> None:
        task = asyncio.create_task(reports.run())
        async with asyncio.timeout(60):
            while not until():
                assert not task.done(), task.exception()
                service.clock.now += 0.1
                await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())


def test_every_rank_of_a_vllm_worker_gets_its_own_report(service: InProcess) -> None:
    """Engine labels are data-parallel ranks."""
    worker = service.add(url="http://h:1", id="w", model="m", ranks=2)
    reports = reports_of(service, Pages({"/metrics": VLLM}))

    ask(service, reports, lambda: reports.latest(Source("w", 1)))

    assert reports.latest(Source(worker.spec.worker_id, 0)) == LoadReport(
        worker_id="w",
        rank=0,
        timestamp=5.0,
        request_active_slots=3,
        num_requests_waiting=1,
        kv_active_blocks=500,
        kv_total_blocks=2000,
        gpu_cache_usage_perc=0.25,
        gpu_prefix_cache_hit_rate=0.4,
    )
    assert reports.latest(Source("w", 1)) == LoadReport(
        worker_id="w",
        rank=1,
        timestamp=5.0,
        request_active_slots=5,
        num_requests_waiting=0,
        kv_active_blocks=500,
        kv_total_blocks=1000,
        gpu_cache_usage_perc=0.5,
    )


def test_a_worker_that_begins_at_a_later_rank_may_count_either_way(service: InProcess) -> None:
    """Some engines count over the fleet, others each from nought."""
    service.add(url="http://h:1", id="w", model="m", ranks=2, first_rank=4)
    page = b'vllm:num_requests_running{engine="0"} 1\nvllm:num_requests_running{engine="5"} 2\n'
    reports = reports_of(service, Pages({"/metrics": page}))

    ask(service, reports, lambda: reports.latest(Source("w", 4)))

    active = {row.report.source: row.report.request_active_slots for row in reports.rows()}
    assert active == {Source("w", 4): 1, Source("w", 5): 2}


@pytest.mark.parametrize(
    ("page", "figures"),
    [
        (
            OLD_VLLM,
            RankFigures(running=2, waiting=4, usage=0.75, total_blocks=100, counters=RankCounters(10.0, 5.0)),
        ),
        (
            SGLANG,
            RankFigures(running=8, waiting=3, usage=0.28, hit_rate=0.0075, active_blocks=100, total_blocks=500),
        ),
        (OLD_VLLM.replace(b"vllm:", b"ray_vllm_"), read_page(OLD_VLLM)[0]),
        (TRTLLM, RankFigures(running=4, usage=0.5, total_blocks=200)),
        (SGLANG.replace(b'dp_rank="0",', b""), read_page(SGLANG)[0]),
    ],
)
def test_the_names_of_engines_old_and_new_are_known(page: bytes, figures: RankFigures) -> None:
    """A slice of a rank does not count twice, nor does a breakdown by priority."""
    assert read_page(page) == {0: figures}


def test_capacity_may_come_as_gauges() -> None:
    """As SGLang tells it since 0.5.11."""
    assert read_page(NEW_SGLANG) == {1: RankFigures(running=8, active_blocks=10, total_blocks=500)}


def test_any_bytes_are_a_page() -> None:
    """Damaged lines are passed over; nothing is raised, and nothing grows without bound."""
    chance = random.Random(11)
    for _ in range(2000):
        data = bytearray(VLLM + SGLANG)
        for _ in range(40):
            data[chance.randrange(len(data))] = chance.randrange(256)
        assert len(read_page(bytes(data))) < 50
    many = b"".join(b'vllm:num_requests_running{engine="%d"} 1\n' % rank for rank in range(20_000))
    assert len(read_page(many)) <= 1024
    assert read_page(b'vllm:num_requests_running{engine="0"} nan\nvllm:num_requests_waiting{engine="0"} -3\n') == {}
    assert read_page(b"vllm:" + b"x" * 1_000_000) == {}


def test_a_hit_rate_is_that_since_the_last_question(service: InProcess) -> None:
    """An engine's counters never fall, unless it began anew."""
    earlier = RankCounters(1000, 400)

    assert RankCounters(1100, 490).hit_rate_since(earlier) == 0.9
    assert RankCounters(1000, 400).hit_rate_since(earlier) is None
    assert RankCounters(10, 5).hit_rate_since(earlier) == 0.5
    assert earlier.hit_rate_since(None) == 0.4


def test_our_own_page_is_asked_where_the_engine_has_none(service: InProcess) -> None:
    """A publisher that is mounted in the engine's server knows the load too; then it alone is asked."""
    service.add(url="http://h:1", id="w", model="m", ranks=2)
    theirs = [
        load_record(LoadReport(worker_id="it calls itself otherwise", rank=1, num_requests_waiting=6)),
        load_record(LoadReport(worker_id="w", rank=7, num_requests_waiting=6)),
        {"nonsense": 1},
    ]
    pages = Pages({"/kv_metrics": {"reports": theirs}})
    reports = reports_of(service, pages)

    ask(service, reports, lambda: reports.polls >= 3)

    assert reports.latest(Source("w", 1)) == LoadReport(worker_id="w", rank=1, num_requests_waiting=6)
    assert reports.latest(Source("w", 7)) is None
    assert pages.asked[:4] == ["/metrics", "/kv_metrics", "/kv_metrics", "/kv_metrics"]


@pytest.mark.parametrize("body", [b"nonsense", b"[]", b'{"reports": 5}', b"[" * 100_000, b'{"reports": [[]]}'])
def test_a_page_that_tells_no_load_is_counted_and_asked_for_ever_more_seldom(service: InProcess, body: bytes) -> None:
    """A worker without figures is no error, and not worth many questions."""
    service.add(url="http://h:1", id="w", model="m")
    pages = Pages({"/metrics": b"# nothing\n", "/kv_metrics": body})
    reports = reports_of(service, pages)
    began = service.clock.now

    ask(service, reports, lambda: reports.failures["no_load"] >= 8)

    assert service.clock.now - began > 0.01 * (2 + 4 + 8 + 16 * 4) * 0.9
    assert pages.asked[:3] == list(PATHS)
    assert list(reports.rows()) == []


def test_a_worker_that_cannot_be_reached_keeps_its_last_report_and_its_age(service: InProcess) -> None:
    """Whoever reads it sees how old it is."""
    service.add(url="http://h:1", id="w", model="m")
    pages = Pages({"/metrics": OLD_VLLM})
    reports = reports_of(service, pages)
    ask(service, reports, lambda: reports.latest(Source("w", 0)))
    pages.answers["/metrics"] = REFUSED
    ask(service, reports, lambda: reports.failures["unreachable"] >= 2)
    service.clock.now += 100

    assert reports.latest(Source("w", 0)) is not None
    assert (reports.age(Source("w", 0)) or 0) >= 100
    assert reports.as_json()[0]["age_seconds"] >= 100
    assert reports.as_json()[0]["num_requests_waiting"] == 4


def test_a_bug_in_reading_one_worker_ends_nothing(service: InProcess) -> None:
    """The others are asked as before, and so is this one."""
    service.add(url="http://h:1", id="w", model="m")
    pages = Pages({"/metrics": ValueError("a bug")})
    reports = reports_of(service, pages)
    ask(service, reports, lambda: reports.failures["bug"] >= 2)
    pages.answers["/metrics"] = VLLM
    ask(service, reports, lambda: reports.latest(Source("w", 0)))

    assert reports.failures == {"bug": reports.failures["bug"]}


def test_what_a_worker_said_goes_with_it(service: InProcess) -> None:
    """Neither its report nor what is remembered of its counters stays."""
    service.add(url="http://h:1", id="w", model="m")
    reports = reports_of(service, Pages({"/metrics": VLLM}))
    ask(service, reports, lambda: reports.latest(Source("w", 0)))
    service.service.registry.remove("w", now=service.clock.now)
    ask(service, reports, lambda: reports.latest(Source("w", 0)) is None)

    assert list(reports.rows()) == []


def test_reports_of_an_event_plane_count_like_asked_ones(service: InProcess) -> None:
    """Those of ranks that nobody has are refused and counted."""
    service.add(url="http://h:1", id="w", model="m", ranks=2)
    reports = reports_of(service, Pages({}))
    for source in (Source("w", 1), Source("w", 2), Source("x", 0)):
        reports.take(LoadReport(worker_id=source.worker_id, rank=source.rank, kv_active_blocks=4))

    assert [row.report.source for row in reports.rows()] == [Source("w", 1)]
    assert (reports.taken, reports.refused) == (1, 2)


def test_a_report_that_says_nothing_replaces_none(service: InProcess) -> None:
    """A publisher without figures is no reason to forget those of the engine's own page."""
    service.add(url="http://h:1", id="w", model="m")
    reports = reports_of(service, Pages({}))
    reports.take(LoadReport(worker_id="w", kv_active_blocks=4))
    reports.take(LoadReport(worker_id="w", timestamp=7.0))

    assert reports.latest(Source("w", 0)) == LoadReport(worker_id="w", kv_active_blocks=4)
    assert (reports.taken, reports.refused) == (1, 1)


def test_who_tells_its_load_by_itself_is_not_asked(service: InProcess) -> None:
    """As long as it does, and for all its ranks."""
    service.add(url="http://h:1", id="talks", model="m", ranks=2)
    service.add(url="http://h:2", id="half", model="m", ranks=2)
    asked: list[str] = []

    async def get(worker: Worker, path: str, *, timeout_seconds: float, max_bytes: int) -> Response:
        asked.append(worker.spec.worker_id)
        return Response(200, [], VLLM)

    reports = reports_of(service, get)

    def tells() -> bool:
        for source in (Source("talks", 0), Source("talks", 1), Source("half", 0)):
            reports.take(LoadReport(worker_id=source.worker_id, rank=source.rank, kv_active_blocks=4))
        return len(asked) >= 20

    ask(service, reports, tells)
    assert set(asked) == {"half"}
    silent_since = service.clock.now
    ask(service, reports, lambda: "talks" in asked)

    assert service.clock.now - silent_since >= TOLD_SECONDS


def test_without_questions_too_what_a_worker_told_goes_with_it(service: InProcess) -> None:
    """Nothing else would ever forget it."""
    service.add(url="http://h:1", id="w", model="m")
    reports = reports_of(service, Pages({}))
    reports.take(LoadReport(worker_id="w", kv_active_blocks=4))
    service.service.registry.remove("w", now=service.clock.now)

    assert list(reports.rows()) == []
    assert reports.latest(Source("w", 0)) is None


def test_what_a_publisher_sends_beside_its_events_is_known_to_the_service(service: InProcess) -> None:
    """The whole way, from the engine's call to what the admin API shows."""

    async def scenario() -> None:
        with ZmqEventPublisher("tcp://127.0.0.1:*", wire="native", worker_id="w") as publisher:
            service.add(url="http://h:1", id="w", model="m", events=publisher.endpoint)
            running = asyncio.create_task(service.service.subscriber.run())
            async with asyncio.timeout(60):
                waiting = 0
                while (known := service.service.loads.latest(Source("w", 0))) is None:
                    publisher.publish_load(LoadReport(worker_id="", num_requests_waiting=waiting))
                    waiting += 1
                    await asyncio.sleep(0.002)
            await service.service.subscriber.close()
            await running

        assert known.num_requests_waiting is not None
        assert service.service.loads.as_json()[0]["worker_id"] == "w"

    asyncio.run(scenario())


def test_workers_that_are_not_ready_are_not_asked(service: InProcess) -> None:
    """The health checks find out when they are."""
    service.add(url="http://h:1", id="w", model="m", healthy=False)
    pages = Pages({"/metrics": VLLM})
    reports = reports_of(service, pages)
    ready = service.add(url="http://h:2", id="x", model="m")
    ask(service, reports, lambda: reports.latest(Source(ready.spec.worker_id, 0)))

    assert reports.latest(Source("w", 0)) is None


def test_a_simulated_engine_tells_its_load_over_the_wire(service: InProcess) -> None:
    """The whole way: real sockets, real pages, both ranks."""

    async def scenario() -> None:
        async with engine("--ranks", "2", "--blocks", "100") as (client, simulated):
            worker = service.add(url=f"http://127.0.0.1:{simulated.port}", id="w", model="m", ranks=2)
            pool = UpstreamPool(ProxyLimits(), clock=asyncio.get_running_loop().time)

            async def get(worker: Worker, path: str, *, timeout_seconds: float, max_bytes: int) -> Response:
                assert worker.endpoint is not None
                return await fetch(
                    pool, worker.endpoint, "GET", path, timeout_seconds=timeout_seconds, max_bytes=max_bytes
                )

            reports = reports_of(service, get)
            asking = asyncio.create_task(reports.run())
            model = (await client.get("/v1/models")).json()["data"][0]["id"]
            prompt = {"model": model, "prompt": list(range(160)), "max_tokens": 2}
            for _ in range(2):
                await client.post("/v1/completions", json=prompt, headers={"X-data-parallel-rank": "0"})

            def is_known() -> bool:
                known = reports.latest(Source(worker.spec.worker_id, 0))
                return known is not None and bool(known.gpu_prefix_cache_hit_rate)

            async with asyncio.timeout(60):
                while not is_known() or reports.latest(Source("w", 1)) is None:
                    service.clock.now += 0.1
                    await asyncio.sleep(0.005)
                    await client.post("/v1/completions", json=prompt, headers={"X-data-parallel-rank": "0"})
            report = reports.latest(Source("w", 0))
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            pool.close()

        assert report is not None
        assert report.kv_total_blocks == 100
        assert report.request_active_slots is not None
        assert 0 < (report.gpu_prefix_cache_hit_rate or 0) <= 1
        assert reports.failures == {}

    asyncio.run(asyncio.wait_for(scenario(), 90))
