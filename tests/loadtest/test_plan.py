"""Plans: what can be run is taken, what cannot is refused in a sentence that helps."""

import json
import tomllib
from pathlib import Path

import pytest

from cachecast_load.plan.model import Load, Plan, PlanError, from_dict, make_plan, read_toml
from cachecast_load.plan.shipped import find_plan, shipped_plans, summary
from cachecast_load.plan.target import make_target
from cachecast_load.profiles import PROFILES, default_plan, explain, profile_class
from cachecast_load.run.station import open_session

DEFAULT = Plan("fanout")


def plan_of(toml, **overrides):
    return make_plan(DEFAULT, tomllib.loads(toml), overrides)


def test_a_plan_survives_json():
    plan = plan_of(
        "[shape]\nkind='stages'\nstages=[[1, 5], [2.5, 100]]\n[behaviour]\nmix={fanout=1}"
    )
    assert from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


@pytest.mark.parametrize(
    ("section", "words"),
    [({"nodes": 3}, "'nodes'"), ({"load": {"burst": 3}}, "burst"), ({"seed": "x"}, "whole number")],
)
def test_a_plan_of_another_version_is_refused_and_not_half_understood(section, words):
    plain = json.loads(json.dumps(DEFAULT.to_dict()))
    with pytest.raises(PlanError, match=words):
        from_dict(plain | section)


def test_flags_beat_the_file_and_the_file_beats_the_defaults():
    plan = plan_of("[load]\nrate = 5\nchannels = 3", rate=7.0)
    assert (plan.load.rate, plan.load.channels, plan.load.subscribers) == (7.0, 3, 1000)


@pytest.mark.parametrize("name", PROFILES)
def test_the_default_plan_of_every_profile_can_be_run(name):
    plan = make_plan(default_plan(name), {})
    assert profile_class(name).fit(plan).profile == name


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("[laod]", "did you mean load"),
        ("[load]\nsubscriber = 5", "did you mean subscribers"),
        ("[load]\nrate = 'fast'", "load.rate wants a number"),
        ("[load]\nsubscribers = 2.5", "wants a whole number"),
        ("[load]\nsubscribers = true", "wants a whole number"),
        ("[load]\nrate = -1", "must not be negative"),
        ("[load]\nrate = inf", "finite"),
        ("[load]\nrate = 1e6", "raise max_rate"),
        ("[load]\nduration_s = 1e9", "raise max_duration_s"),
        ("[load]\nsubscribers = 1_000_000", "raise max_subscribers"),
        ("[load]\nsubscribers = 100_000\nrate = 15_000", "raise max_deliveries_per_s"),
        ("[load]\npayload_bytes = 10", "the stamp that proves delivery"),
        ("[load]\nchannels_per_subscriber = 2", "between 1 and load.channels (1)"),
        ("[load]\ndistribution = 'normal'", "uniform, zipf"),
        ("[shape]\nkind = 'wave'", "constant, steps"),
        ("[shape]\nkind = 'ramp'", "needs shape.to"),
        ("[shape]\nkind = 'stages'", "needs stages"),
        ("[shape]\nkind = 'stages'\nstages = [1, 2]", "a list of pairs"),
        ("[shape]\nkind = 'stages'\nstages = [[1, nan]]", "shape.stages must be a finite"),
        ("[shape]\nkind = 'stages'\nstages = [[1e6, 10]]", "raise max_duration_s"),
        ("[shape]\nkind = 'ramp'\nto = inf", "shape.to must be a finite"),
        ("[shape]\nkind = 'knee'\nto = 100", "needs [slo] rules"),
        ("[load]\nsubscribers = 0", "at least 1"),
        ("[behaviour]\nchurn_per_s = 1e7", "raise max_connect_rate"),
        ("[behaviour]\ndrops = 1000", "raise max_drops"),
        ("[load]\nduration_s = 5\n[slo]\nrules = ['server.rss_growth <= 2']", "for 12 s or more"),
        ("[behaviour]\ndrop_share = 20", "between 0 and 1"),
        ("[behaviour]\nchannel_kind = 'secret-'", "private-cache-"),
        ("[slo]\nrules = 'x'", "rules = ["),
        ("[slo]\nrules = ['delivery.p99 <= 5']", "delivery.p99_ms"),
        ("conflation = 'perhaps'", "metrics, allowed, never"),
        ("[slo]\nrules = [5]", "rules = ["),
        ("[slo]\nrule = []", "did you mean rules"),
        ("slo = 5", "rules = ["),
        ("slos = []", "did you mean slo?"),
        ("load = 5", "[load] must be a table"),
        ("seed = 'seven'", "seed wants a whole number, not 'seven'"),
        ("strict = 1", "strict wants true or false, not 1"),
        ("[load]\ndistribution = 5", "load.distribution wants a text, not 5"),
        ("[load]\nrate = true", "load.rate wants a number, not True"),
        ("[shape]\nto = 'high'", "shape.to wants a number, not 'high'"),
        ("[shape]\nstages = 7", "shape.stages wants a list, not 7"),
        ("[shape]\nkind = 'stages'\nstages = [[1, 2, 3]]", "[[seconds, rate], ...]"),
        (
            "[shape]\nkind = 'stages'\nof = 'both'\nstages = [[1, 2]]",
            "stages of both are [[seconds, rate, subscribers], ...]",
        ),
        ("[shape]\nkind = 'ramp'\nof = 'both'\nto = 5", "only a stages shape"),
        ("[shape]\nstages = [[1, 'x']]", "a list of pairs, not [[1, 'x']]"),
        ("[behaviour]\nmix = { fanout = 'most' }", "behaviour.mix wants a list of pairs"),
        (f"[load]\nsubscribers = 1{'0' * 400}", "load.subscribers must be a finite number"),
        (f"[load]\nrate = 1{'0' * 400}", "load.rate"),
        (f"seed = {2**63}", "seed must be between"),
        ("[load]\nconnect_rate = 0.001", "seconds of connecting"),
        ("[limits]\nconnect_timeout_s = 0", "limits.connect_timeout_s must be above 0"),
        ("[limits]\npublish_timeout_s = 0", "limits.publish_timeout_s must be above 0"),
    ],
)
def test_what_cannot_be_run_is_refused_with_a_remedy(toml, words):
    with pytest.raises(PlanError) as caught:
        plan_of(toml)
    assert words in str(caught.value)


def test_an_unknown_profile_names_near_ones():
    with pytest.raises(PlanError, match="did you mean fanout"):
        default_plan("fan-out")
    with pytest.raises(PlanError, match="did you mean reconnect-storm"):
        default_plan("storm")


def test_an_unknown_profile_with_nothing_near_is_answered_with_all():
    with pytest.raises(PlanError, match="there are fanout, many-channels, ") as caught:
        default_plan("nope")
    assert "did you mean" not in str(caught.value)


def test_a_file_that_is_not_toml_is_refused(tmp_path):
    (tmp_path / "plan.toml").write_text("load = [")
    with pytest.raises(PlanError, match="not TOML"):
        read_toml(tmp_path / "plan.toml")
    with pytest.raises(PlanError, match="No such file"):
        read_toml(tmp_path / "none.toml")


def test_blocks_hold_the_greatest_level_of_the_shape():
    plan = plan_of("block_size = 100\n[shape]\nkind='ramp'\nof='subscribers'\nto=950")
    assert (plan.greatest_subscribers, plan.blocks) == (1000, 10)


def test_a_mix_of_unknown_profiles_is_refused():
    plan = make_plan(default_plan("mixed"), {"behaviour": {"mix": {"fanuot": 1.0}}})
    with pytest.raises(PlanError, match="fanuot"):
        profile_class("mixed").fit(plan)


def test_cache_expiry_measures_for_as_long_as_the_ttl_takes():
    plan = make_plan(default_plan("cache-expiry"), {"behaviour": {"ttl_s": 5}})
    assert profile_class("cache-expiry").fit(plan).load.duration_s == pytest.approx(7.5)


def test_cache_expiry_refuses_a_duration_that_ends_before_the_deadline():
    """Thirty minutes in place of the five seconds that were asked for are no favour."""
    fit = profile_class("cache-expiry").fit
    given = {"behaviour": {"ttl_s": 1800}, "load": {"duration_s": 5}}
    with pytest.raises(PlanError, match=r"measures for 1802\.5 s; leave --duration"):
        fit(make_plan(default_plan("cache-expiry"), given))
    given["load"]["duration_s"] = 2000
    assert fit(make_plan(default_plan("cache-expiry"), given)).load.duration_s == 2000
    given["load"]["duration_s"] = 0
    fitted = fit(make_plan(default_plan("cache-expiry"), given))
    assert fitted.load.duration_s == 1802.5
    assert explain(fitted) == ["measures for 1802.5 s, for a value lives for 1800 s there"]


def test_cache_expiry_refuses_a_shape():
    plan = make_plan(default_plan("cache-expiry"), {"shape": {"kind": "ramp", "to": 5}})
    with pytest.raises(PlanError, match="has no shape"):
        profile_class("cache-expiry").fit(plan)


def test_what_a_profile_does_not_use_is_said():
    plan = make_plan(default_plan("presence"), {"load": {"channels": 7}})
    assert explain(plan) == [
        "presence does not use load.channels: members_per_channel says how many there are"
    ]
    assert explain(make_plan(default_plan("fanout"), {"load": {"channels": 7}})) == []


@pytest.mark.parametrize("name", sorted(set(PROFILES) - {"cache-expiry"}))
def test_a_run_of_no_length_is_refused(name):
    plan = make_plan(default_plan(name), {"load": {"duration_s": 0}})
    with pytest.raises(PlanError, match="duration_s must be above 0"):
        profile_class(name).fit(plan)


DAY = {
    "load": {"rate": 4.0, "subscribers": 10},
    "shape": {"kind": "stages", "of": "both", "stages": [[20, 40, 100], [20, 4, 50]]},
}


def test_flags_stretch_a_day_to_another_length_and_other_peaks():
    plan = make_plan(DEFAULT, DAY, {"duration_s": 20, "rate": 80.0, "subscribers": 60})

    assert plan.shape.stages == ((10, 80, 60), (10, 8, 30))
    assert (plan.load.rate, plan.load.subscribers) == (8, 6)
    assert (plan.measured_s, plan.greatest_rate, plan.greatest_subscribers) == (20, 80, 60)
    assert make_plan(DEFAULT, DAY).shape.stages == ((20, 40, 100), (20, 4, 50))


def test_a_duration_stretches_the_stages_of_one_thing_and_is_no_answer_to_a_knee_search():
    stages = {"shape": {"kind": "stages", "stages": [[2, 20], [8, 0]]}}
    assert make_plan(DEFAULT, stages, {"duration_s": 5.0}).shape.stages == ((1, 20), (4, 0))
    knee = {"shape": {"kind": "knee", "to": 50}, "slo": {"rules": ["delivery.lost == 0"]}}
    with pytest.raises(PlanError, match="a knee search has no duration"):
        make_plan(DEFAULT, knee, {"duration_s": 5.0})
    with pytest.raises(PlanError, match="must be above 0"):
        make_plan(DEFAULT, stages, {"duration_s": 0.0})
    given = make_plan(DEFAULT, {**stages, "load": {"duration_s": 5}})
    assert explain(given) == ["a stages shape has a length of its own: load.duration_s is not it"]


@pytest.mark.parametrize("name", shipped_plans())
def test_every_plan_that_ships_can_be_run_and_says_what_it_is(name):
    document = read_toml(find_plan(Path(name)))
    plan = make_plan(default_plan(document["profile"]), document)

    assert profile_class(plan.profile).fit(plan) == plan
    assert summary(shipped_plans()[name]).endswith(".")


def test_a_plan_that_does_not_ship_is_answered_with_near_ones(tmp_path):
    with pytest.raises(PlanError, match="did you mean production"):
        find_plan(Path("prodction"))
    with pytest.raises(PlanError, match="plans that ship are production"):
        find_plan(Path("zzz"))
    # What looks like a file is one, whether it is there or not.
    assert find_plan(tmp_path / "production") == tmp_path / "production"
    assert find_plan(Path("production.toml")) == Path("production.toml")


@pytest.mark.parametrize("text", ["x = " + "[" * 5_000, "x = " + "9" * 5_000, "\0", "x = [[1]"])
def test_a_file_that_no_reader_of_toml_takes_is_named(tmp_path, text):
    path = tmp_path / "plan.toml"
    path.write_text(text)
    with pytest.raises(PlanError, match=r"plan\.toml"):
        read_toml(path)


@pytest.mark.parametrize("exponent", [0, 1.1, 30, 1e300])
def test_zipf_finds_as_many_channels_as_a_subscriber_wants_however_steep_it_is(exponent):
    load = Load(
        channels=100,
        channels_per_subscriber=60,
        distribution="zipf",
        zipf_exponent=exponent,
    )
    plan = Plan("fanout", load=load)
    target = make_target(url="ws://127.0.0.1:9", app_id="1", key="k", secret="s")
    profile = profile_class("fanout")(plan, open_session(plan, target, 7))
    for subscriber in range(20):
        channels = profile.subscriptions(subscriber)
        assert len(set(channels)) == 60
        assert set(channels) <= set(range(100))
    if exponent == 1e300:
        assert channels == list(range(60))
