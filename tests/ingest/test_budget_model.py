"""The channel model under a bound on memory: room comes and goes at any moment, and claims are true all the same.

What fills the bound is a charge of the test's own. When the channel heals and there is room, all that was not noted
comes back.
"""

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule

from kvrouter.index import PrefixIndex
from kvrouter.index.reference import PrefixIndex as ReferenceIndex
from tests.ingest.engines import SOURCE
from tests.ingest.test_channel_model import Channel, ForgetfulChannel, NamedChannel

BYTES_MAX = 16 << 20
BACK_OFF_SECONDS_MAX = 4000.0


class _Squeezed:
    """Rules about memory, to mix into a model of a channel."""

    kind: Any = PrefixIndex
    index: Any
    ingest: Any
    now: float
    ballast: int

    def make_index(self) -> Any:
        """A bounded one."""
        self.ballast = 0
        return self.kind(bytes_max=BYTES_MAX)

    @rule(share=st.sampled_from([0.1, 0.95, 1.0, 1.1]))
    def fill(self, share: float) -> None:
        """Others take so much of the bound; some time passes."""
        self.now += 20.0
        change = int(share * BYTES_MAX) - self.index.nbytes() - self.index.nbytes_beside()
        self.index.charge(change)
        self.ballast += change

    @rule()
    def heal(self) -> None:
        """First of all there is room again, and as much time as it takes until it is used."""
        self.index.charge(-self.ballast)
        self.ballast = 0
        self.now += BACK_OFF_SECONDS_MAX
        super().heal()  # type: ignore[misc]

        (status,) = self.ingest.status(now=self.now)
        assert status.worker_id == SOURCE.worker_id


class SqueezedChannel(_Squeezed, Channel):
    """An engine's own wire, all of which can be repeated."""


class SqueezedForgetfulChannel(_Squeezed, ForgetfulChannel):
    """The same, of which only the end can be repeated."""


class SqueezedNamedChannel(_Squeezed, NamedChannel):
    """With snapshots and digests."""


class SqueezedReferenceChannel(_Squeezed, Channel):
    """On the reference."""

    kind = ReferenceIndex


class SqueezedNamedReferenceChannel(_Squeezed, NamedChannel):
    """On the reference, with snapshots and digests."""

    kind = ReferenceIndex


_SETTINGS = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestSqueezedChannel = SqueezedChannel.TestCase
TestSqueezedChannel.settings = _SETTINGS
TestSqueezedForgetfulChannel = SqueezedForgetfulChannel.TestCase
TestSqueezedForgetfulChannel.settings = _SETTINGS
TestSqueezedNamedChannel = SqueezedNamedChannel.TestCase
TestSqueezedNamedChannel.settings = _SETTINGS
TestSqueezedReferenceChannel = SqueezedReferenceChannel.TestCase
TestSqueezedReferenceChannel.settings = _SETTINGS
TestSqueezedNamedReferenceChannel = SqueezedNamedReferenceChannel.TestCase
TestSqueezedNamedReferenceChannel.settings = _SETTINGS
