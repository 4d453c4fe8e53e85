"""The ledger: every fault is found in exactly the amount it was done, and nothing else is."""

from hypothesis import given
from hypothesis import strategies as st

from cachecast_load.measures.ledger import (
    FAILED,
    Auditor,
    ChannelLog,
    Join,
    Membership,
    observe_by_all,
)

GRACE = 100
TTL = 1_000_000


def auditor(*, is_cache=False, is_slow=lambda _n: False, clock_error_us=0):
    return Auditor(
        channel_name=lambda c: f"channel-{c}",
        is_cache=lambda _c: is_cache,
        grace_us=GRACE,
        ttl_us=TTL,
        clock_error_us=clock_error_us,
        is_slow=is_slow,
    )


def published(count, *, failed=()):
    """One publish each 10 us, answered 5 us later."""
    return [
        (0, seq, 1000 + 10 * seq, FAILED if seq in failed else 1005 + 10 * seq)
        for seq in range(count)
    ]


def member_that_saw(deliveries, *, since=900, until=10**6, subscriber=1):
    member = Membership(0, subscriber, since)
    for seq in deliveries:
        member.observe(seq, seq - 1, 1000 + 10 * seq)
    member.until_us = until
    return member


def audit(member, count, **options):
    failed = options.pop("failed", ())
    books = auditor(**options)
    books.enter_publishes(published(count, failed=failed))
    books.enter_memberships([member])
    return books.finish()


def faults(findings):
    names = ("lost", "doubled", "reordered", "stale", "foreign", "superseded")
    return {name: getattr(findings, name) for name in names if getattr(findings, name)}


def test_a_perfect_subscriber_has_no_faults():
    findings = audit(member_that_saw(range(10)), 10)
    assert (findings.expected, findings.received, faults(findings)) == (10, 10, {})


def test_what_never_came_is_lost_at_the_head_in_the_middle_and_at_the_end():
    findings = audit(member_that_saw([2, 3, 5, 6]), 9)
    assert faults(findings) == {"lost": 5}
    assert findings.examples["lost"] == ["subscriber 1 on channel-0 never got 0-1, 4, 7-8"]


def test_a_subscriber_that_got_nothing_lost_everything():
    assert faults(audit(member_that_saw([]), 4)) == {"lost": 4}


def test_the_newest_one_again_is_doubled():
    assert faults(audit(member_that_saw([0, 1, 1, 2]), 3)) == {"doubled": 1}


def test_a_skipped_one_that_comes_late_is_reordered_and_not_lost():
    assert faults(audit(member_that_saw([0, 2, 1, 3]), 4)) == {"reordered": 1}


def test_one_seen_before_that_comes_again_later_is_stale():
    assert faults(audit(member_that_saw([0, 1, 2, 1]), 3)) == {"stale": 1}


def test_a_value_older_than_the_subscription_after_a_fresh_one_is_stale():
    member = member_that_saw([5, 3], since=1045)
    assert faults(audit(member, 6)) == {"stale": 1}


def test_the_first_two_swapped_are_reordered():
    assert faults(audit(member_that_saw([1, 0, 2]), 3)) == {"reordered": 1}


def test_publishes_under_way_together_may_arrive_in_any_order():
    member = Membership(0, 1, 900)
    for seq, floor in ((0, -1), (2, 0), (1, 0), (3, 2)):  # 1 and 2 were sent before either answer
        member.observe(seq, floor, 1000 + 10 * seq)
    member.until_us = 10**6
    assert faults(audit(member, 4)) == {}


def test_a_failed_publish_is_owed_to_nobody():
    assert faults(audit(member_that_saw([0, 1, 3]), 5, failed=(2, 4))) == {}


def test_a_publish_that_failed_but_arrived_is_no_fault():
    assert faults(audit(member_that_saw([0, 1, 2, 3]), 4, failed=(2,))) == {}


def test_what_was_sent_before_the_confirmation_is_not_owed():
    findings = audit(member_that_saw([4, 5], since=1035), 6)
    assert (findings.expected, faults(findings)) == (2, {})


def test_what_was_answered_within_the_grace_before_leaving_is_not_owed():
    findings = audit(member_that_saw([0, 1, 2], until=1025 + GRACE), 9)
    assert (findings.expected, faults(findings)) == (3, {})


def test_a_number_nobody_published_is_foreign():
    assert faults(audit(member_that_saw([0, 1, 9]), 2)) == {"foreign": 1}


def test_skipped_updates_of_a_cache_channel_are_superseded_but_the_last_is_lost():
    findings = audit(member_that_saw([0, 3]), 6, is_cache=True)
    assert faults(findings) == {"superseded": 2, "lost": 2}


def test_slow_readers_are_counted_apart():
    findings = audit(member_that_saw([0, 3]), 6, is_slow=lambda n: n == 1)
    assert (findings.slow_missed, faults(findings)) == (4, {})


def test_what_comes_back_to_a_sender_is_an_echo():
    findings = audit(member_that_saw([0, 1], subscriber=-1), 2)
    assert (findings.echoed, findings.expected, faults(findings)) == (2, 0, {})


def test_unanswered_publishes_are_owed_to_nobody():
    log = ChannelLog()
    log.enter(2, 50, 55)
    assert log.count([(0, 2)]) == 1


def joined(seq, *, asked, answered=None, count=5, **options):
    books = auditor(is_cache=True, **options)
    books.enter_publishes(published(count))
    books.enter_joins([Join(0, 7, asked, answered or asked + 1, seq)])
    return books.finish()


def test_a_join_with_the_newest_value_is_a_clean_hit():
    findings = joined(4, asked=2000)
    assert (findings.hits, findings.stale_joins, findings.false_misses) == (1, 0, 0)


def test_a_join_with_an_older_value_is_stale():
    assert joined(3, asked=2000).stale_joins == 1


def test_a_value_that_was_not_answered_yet_need_not_be_there():
    assert joined(3, asked=1044).stale_joins == 0


def test_clocks_that_may_differ_take_the_doubt_away():
    assert joined(3, asked=1046).stale_joins == 1
    assert joined(3, asked=1046, clock_error_us=5).stale_joins == 0


def test_a_miss_while_a_value_was_cached_is_false():
    assert joined(-1, asked=2000).false_misses == 1


def test_a_miss_after_the_lifetime_is_right_and_a_value_is_expired():
    after = 1045 + TTL + 1
    assert joined(-1, asked=after).false_misses == 0
    assert joined(4, asked=after).expired_served == 1
    assert joined(4, asked=1045 + TTL).expired_served == 0


def test_settling_early_gives_the_same_as_settling_late():
    late = audit(member_that_saw([0, 2, 2, 1]), 4)
    books = auditor()
    books.enter_publishes(published(4))
    books.enter_memberships([member_that_saw([0, 2, 2, 1])])
    books.settle(2 * 10**6)
    assert books.finish() == late


@given(
    st.integers(2, 60),
    st.lists(st.tuples(st.sampled_from(["lose", "double", "swap", "stale"]), st.integers(0, 59))),
)
def test_any_mixture_of_faults_is_found_in_exactly_its_amount(count, wishes):
    """Faults are laid three apart, so that each is what it is called and nothing else."""
    fault_at = {}
    for fault, place in wishes:
        apart = place // 3 * 3
        if 3 <= apart < count - 2:
            fault_at.setdefault(apart, fault)
    deliveries, done, skip = [], {}, set()
    for seq in range(count):
        fault = fault_at.get(seq)
        if seq in skip:
            continue
        if fault == "lose":
            pass
        elif fault == "double":
            deliveries += [seq, seq]
        elif fault == "swap":
            deliveries += [seq + 1, seq]
            skip.add(seq + 1)
        elif fault == "stale":
            deliveries += [seq, seq - 1] if seq - 1 in deliveries else [seq]
        else:
            deliveries.append(seq)
        if fault and not (fault == "stale" and deliveries[-1] == seq):
            done[fault] = done.get(fault, 0) + 1
    member = Membership(0, 1, 900)
    for seq in deliveries:
        member.observe(seq, seq - 1, 1000 + 10 * seq)
    member.until_us = 10**6

    findings = audit(Membership.from_wire(member.to_wire()), count)

    names = {"lose": "lost", "double": "doubled", "swap": "reordered", "stale": "stale"}
    assert faults(findings) == {names[fault]: n for fault, n in done.items()}


@given(st.lists(st.lists(st.integers(0, 6), max_size=8), max_size=4), st.integers(0, 6))
def test_an_event_entered_for_many_is_entered_for_each(histories, seq):
    together = [member_that_saw(history) for history in histories]
    alone = [member_that_saw(history) for history in histories]
    observe_by_all(together, seq, seq - 2, 950)
    for member in alone:
        member.observe(seq, seq - 2, 950)
    assert [m.to_wire() for m in together] == [m.to_wire() for m in alone]
