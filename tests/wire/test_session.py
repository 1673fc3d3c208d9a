from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cdc.lsn import Lsn
from cdc.testing.walbytes import StandbyStatus, read_status
from cdc.wire.frames import Keepalive
from cdc.wire.session import ReplicationSession, SessionLimits

LIMITS = SessionLimits(reply_interval=5.0, min_interval=0.01)


def alive(wal_end: int, asks: bool = False) -> Keepalive:
    return Keepalive(Lsn(wal_end), 0, asks)


def reply(session: ReplicationSession, now: float) -> StandbyStatus:
    return read_status(session.status_bytes(now, round(now * 1e6)))


def settled(now: float = 0.0, limits: SessionLimits = LIMITS) -> ReplicationSession:
    """A session that received and acknowledged position 100 and has just said so."""
    session = ReplicationSession(now, limits)
    session.heard_keepalive(alive(100), now)
    session.acknowledge(Lsn(100))
    session.status_bytes(now, 0)
    return session


# --- what is acknowledged ---------------------------------------------------------------------------------------


def test_nothing_is_acknowledged_before_anything_was() -> None:
    assert reply(ReplicationSession(0.0), 0.0) == StandbyStatus(Lsn(0), Lsn(0), Lsn(0), 0, False)


def test_a_position_from_the_future_is_clamped_to_what_this_connection_received() -> None:
    session = ReplicationSession(0.0)
    assert session.acknowledge(Lsn(10**12)) == 0
    session.heard_data(0.0)
    session.heard_commit(Lsn(70))
    assert session.acknowledge(Lsn(10**12)) == 70
    session.heard_keepalive(alive(90), 0.0)
    assert session.acknowledged == 70
    assert session.acknowledge(Lsn(90)) == 90


def test_acknowledging_never_goes_back() -> None:
    session = settled()
    assert session.acknowledge(Lsn(40)) == 100
    session.heard_keepalive(alive(50), 1.0)
    assert (session.received, session.acknowledged) == (100, 100)


def test_the_reply_gives_received_flushed_and_applied() -> None:
    session = ReplicationSession(0.0)
    session.heard_data(0.0)
    session.heard_commit(Lsn(70))
    session.acknowledge(Lsn(30))
    assert reply(session, 2.5) == StandbyStatus(Lsn(70), Lsn(30), Lsn(30), 2_500_000, False)


# --- when a reply is due ----------------------------------------------------------------------------------------


def test_a_request_is_answered_at_once_also_when_the_last_reply_was_just_sent() -> None:
    session = settled(now=7.0)
    session.heard_keepalive(alive(200, asks=True), 7.0)
    assert session.reply_due(7.0)
    assert session.next_deadline(7.0) == 7.0
    session.status_bytes(7.0, 0)
    assert not session.reply_due(7.0)


def test_an_advance_is_reported_at_once_but_not_more_often_than_allowed() -> None:
    session = settled(now=0.0)
    session.heard_data(1.0)
    session.heard_commit(Lsn(200))
    session.heard_commit(Lsn(300))
    assert not session.reply_due(1.0)
    session.acknowledge(Lsn(200))
    assert session.reply_due(1.0)
    session.status_bytes(1.0, 0)
    session.acknowledge(Lsn(300))
    assert not session.reply_due(1.009)
    assert session.next_deadline(1.0) == pytest.approx(1.01)
    assert session.reply_due(1.011)


def test_every_idle_keepalive_is_answered_without_being_asked() -> None:
    session = settled(now=0.0)
    for step in range(1, 5):
        session.heard_keepalive(alive(100), step * 1.0)  # the same position again
        assert session.reply_due(step * 1.0)
        session.status_bytes(step * 1.0, 0)
        assert not session.reply_due(step * 1.0)


def test_a_keepalive_while_work_is_pending_is_not_answered_before_it_must_be() -> None:
    session = settled(now=0.0)
    session.heard_keepalive(alive(200), 1.0)
    assert not session.reply_due(1.0)
    assert session.reply_due(5.0)
    session.acknowledge(Lsn(200))
    assert session.reply_due(1.0)


@pytest.mark.parametrize(
    ("timeout", "interval"), [(60.0, 10.0), (15.0, 5.0), (3.0, 1.0), (0.0, 10.0), (0.001, 0.001), (1000.0, 10.0)]
)
def test_a_reply_goes_out_three_times_within_the_servers_patience(timeout: float, interval: float) -> None:
    session = ReplicationSession(0.0, SessionLimits.for_server(timeout))
    assert not session.reply_due(interval * 0.99)
    assert session.reply_due(interval)
    session.paused(0.0, True)  # also while reading is paused
    assert session.reply_due(interval)


# --- half-open connections --------------------------------------------------------------------------------------


def test_a_silent_server_is_asked_once_and_then_given_up_within_thirty_seconds() -> None:
    session, now, asked, died = settled(), 0.0, [], None
    while died is None and now < 60:
        now = max(session.next_deadline(now), now)
        if session.is_dead(now):
            died = now
        elif session.reply_due(now) and reply(session, now).reply_requested:
            asked.append(now)
    assert asked == [10.0]
    assert died == 25.0


def test_an_answer_in_time_keeps_the_connection() -> None:
    session = settled()
    assert reply(session, 10.0).reply_requested
    session.heard_keepalive(alive(100), 24.9)
    assert session.silent_for(24.9) == 0.0
    assert not session.is_dead(40.0)
    assert reply(session, 34.9).reply_requested


def test_data_is_a_sign_of_life_too() -> None:
    session = settled()
    session.status_bytes(10.0, 0)
    session.heard_data(20.0)
    assert session.silent_for(21.0) == 1.0
    assert not session.is_dead(25.0)


def test_nobody_is_given_up_without_having_been_asked() -> None:
    session = settled()
    assert not session.is_dead(1000.0)  # this process was stopped, say
    assert reply(session, 1000.0).reply_requested
    assert not session.is_dead(1014.9)
    assert session.is_dead(1015.0)


def test_time_spent_paused_does_not_count_as_silence() -> None:
    session = settled()
    session.paused(4.0, True)
    assert session.silent_for(500.0) == 4.0
    assert not reply(session, 500.0).reply_requested
    session.paused(500.0, False)
    assert session.silent_for(501.0) == 5.0
    assert not session.is_dead(506.0)
    assert reply(session, 506.0).reply_requested


def test_after_a_pause_the_server_is_asked_again_before_it_is_given_up() -> None:
    session = settled()
    session.status_bytes(10.0, 0)
    session.paused(24.9, True)
    session.paused(90.0, False)  # its answer may be waiting in the socket
    assert not session.is_dead(100.0)
    assert reply(session, 90.0).reply_requested
    assert session.is_dead(105.0)


@pytest.mark.parametrize(
    "wrong", [{"dead_after": 30.0}, {"ask_after": 25.0}, {"min_interval": 11.0}, {"ask_after": 0.0}]
)
def test_limits_that_cannot_hold_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="limits"):
        SessionLimits(**wrong)  # type: ignore[arg-type]


# --- a server that wants to stop --------------------------------------------------------------------------------


def burst(session: ReplicationSession, wal_end: int, times: list[float]) -> None:
    for now in times:
        session.heard_keepalive(alive(wal_end, asks=True), now)
        session.status_bytes(now, 0)


def test_a_burst_of_requests_while_work_is_pending_is_a_shutdown() -> None:
    session = settled()
    session.heard_data(1.0)
    session.heard_commit(Lsn(200))
    burst(session, 200, [1.1, 1.2, 1.3, 1.4])
    assert not session.server_is_shutting_down
    burst(session, 200, [1.5])
    assert session.server_is_shutting_down


def test_with_everything_acknowledged_the_server_stops_by_itself() -> None:
    session = settled()
    burst(session, 100, [1.0, 1.1, 1.2, 1.3, 1.4, 1.5])
    assert not session.server_is_shutting_down


def test_slow_requests_are_no_shutdown() -> None:
    session = settled()
    session.heard_commit(Lsn(200))
    burst(session, 200, [1.0, 1.6, 2.2, 2.8, 3.4, 4.0])
    assert not session.server_is_shutting_down


def test_progress_of_the_server_is_no_shutdown() -> None:
    session = settled()
    for step in range(20):
        burst(session, 200 + step, [1.0 + step / 100])
    assert not session.server_is_shutting_down
    burst(session, 300, [2.0, 2.1])
    session.heard_data(2.2)
    session.heard_commit(Lsn(310))
    burst(session, 310, [2.3, 2.4, 2.5])
    assert not session.server_is_shutting_down


def test_a_burst_counts_also_when_each_frame_is_reported_as_data_first() -> None:
    session = settled()
    session.heard_commit(Lsn(200))
    for now in (1.1, 1.2, 1.3, 1.4, 1.5):
        session.heard_data(now)
        burst(session, 200, [now])
    assert session.server_is_shutting_down


def test_settling_the_last_work_takes_the_shutdown_back() -> None:
    session = settled()
    session.heard_commit(Lsn(200))
    burst(session, 200, [1.0, 1.1, 1.2, 1.3, 1.4])
    assert session.server_is_shutting_down
    session.acknowledge(Lsn(200))
    assert not session.server_is_shutting_down


# --- any history ------------------------------------------------------------------------------------------------


class AnyHistory(RuleBasedStateMachine):
    """A loop that replies when told to, in whatever order things happen."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.received = 0
        self.reported = 0
        self.replied_at = 0.0
        self.is_paused = False
        self.listened = 0.0
        self.session = ReplicationSession(0.0, LIMITS)

    def reply_if_due(self) -> None:
        if not self.session.reply_due(self.now):
            return
        status = reply(self.session, self.now)
        assert self.reported <= status.flushed == status.applied <= status.written == self.received
        assert not (status.reply_requested and self.is_paused)
        self.reported, self.replied_at = status.flushed, self.now

    @rule(seconds=st.floats(0.0, 40.0, allow_nan=False))
    def time_passes(self, seconds: float) -> None:
        end = self.now + seconds
        while not self.session.is_dead(self.now):
            step = min(self.session.next_deadline(self.now), end)
            assert step >= self.now
            self.listened += 0.0 if self.is_paused else step - self.now
            done, self.now = step >= end, step
            self.reply_if_due()
            assert not self.session.reply_due(self.now)  # told once is enough
            if done:
                break

    @precondition(lambda self: not self.is_paused)
    @rule(wal_end=st.integers(0, 1000), asks=st.booleans())
    def keepalive(self, wal_end: int, asks: bool) -> None:
        self.received, self.listened = max(self.received, wal_end), 0.0
        self.session.heard_keepalive(alive(wal_end, asks), self.now)
        if asks:
            assert self.session.reply_due(self.now)
        self.reply_if_due()

    @precondition(lambda self: not self.is_paused)
    @rule(end_lsn=st.integers(0, 1000))
    def commit(self, end_lsn: int) -> None:
        self.received, self.listened = max(self.received, end_lsn), 0.0
        self.session.heard_data(self.now)
        self.session.heard_commit(Lsn(end_lsn))

    @rule(lsn=st.integers(0, 2000))
    def acknowledge(self, lsn: int) -> None:
        before = self.session.acknowledged
        after = self.session.acknowledge(Lsn(lsn))
        assert before <= after <= self.received
        if after > before:
            assert self.session.next_deadline(self.now) <= max(self.now, self.replied_at + LIMITS.min_interval)

    @rule(is_paused=st.booleans())
    def pause(self, is_paused: bool) -> None:
        self.is_paused = is_paused
        self.session.paused(self.now, is_paused)

    @invariant()
    def positions_are_what_was_received(self) -> None:
        assert self.session.acknowledged <= self.session.received == self.received

    @invariant()
    def replies_are_on_time(self) -> None:
        assert self.session.is_dead(self.now) or self.now - self.replied_at <= LIMITS.reply_interval

    @invariant()
    def dead_means_listened_in_vain(self) -> None:
        if self.session.is_dead(self.now):
            assert not self.is_paused
            assert self.listened >= LIMITS.dead_after - LIMITS.ask_after - 1e-6


TestAnyHistory = AnyHistory.TestCase


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(0, 50), st.booleans()), max_size=40))
def test_a_consumer_that_acknowledges_at_once_is_never_told_of_a_shutdown(
    history: list[tuple[float, int, bool]],
) -> None:
    session, now = ReplicationSession(0.0), 0.0
    for wait, wal_end, asks in history:
        now += wait
        session.heard_keepalive(alive(wal_end, asks), now)
        session.acknowledge(session.received)
        assert not session.server_is_shutting_down
