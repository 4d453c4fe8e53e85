"""What a report says in sentences, and the figures that it shows first.

The terminal, the page and the Markdown summary all tell what is made here, so that they cannot say
different things of one run.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from cachecast_load.measures.figures import FAMILIES, FIGURES
from cachecast_load.report.charts import number
from cachecast_load.report.table import Result
from cachecast_load.run.clock import claim_ms

# A percentile needs some samples beyond it; with fewer it only repeats the maximum.
PERCENTILES = (
    ("p50_ms", "p50", 1),
    ("p90_ms", "p90", 10),
    ("p99_ms", "p99", 100),
    ("p999_ms", "p99.9", 1000),
    ("max_ms", "max", 1),
)
_WORTH_TELLING = 20_000  # frames per second; below that fixed costs hide what a frame costs
_FATES = [
    figure
    for figure in FIGURES.values()
    if figure.group == "delivery" and (figure.is_fault or figure.name == "delivery.conflated")
]
_MEANINGS = {
    "PASS": "Every objective holds.",
    "FAIL": "At least one objective does not hold.",
    "INVALID": "The figures say nothing about the target, good or bad:",
    "RUNNING": "The run goes on, and nothing is judged yet.",
}


def main_latency(result: Result) -> str:
    """Return the name of the latency that the profile is about."""
    is_cache = result["run"]["profile"].startswith("cache-")
    has_values = is_cache and "first_value" in result["histograms"]
    return "first_value" if has_values or "delivery" not in result["histograms"] else "delivery"


def level_unit(result: Result) -> str:
    """Return what the levels of the run's shape are."""
    return "publishes/s" if result["plan"]["shape"]["of"] == "rate" else "subscribers"


def backed(figures: Mapping[str, float], name: str) -> list[tuple[str, float]]:
    """Return those percentiles of a latency that its samples can back: name and milliseconds."""
    count = figures.get(f"{name}.count", 0)
    return [
        (text, figures[f"{name}.{part}"]) for part, text, needed in PERCENTILES if count >= needed
    ]


def claimed(result: Result, name: str) -> dict[str, str]:
    """Return what may be claimed of a latency: milliseconds by percentile, as texts."""
    error_ms = result["run"]["clock_error_ms"] if FAMILIES[name].spans_clocks else 0.0
    return {text: claim_ms(value, error_ms) for text, value in backed(result["figures"], name)}


def load_sentence(result: Result) -> str:
    """Return how much was asked for: `100 subscribers, 20 to 111 publishes/s`."""
    load, shape = result["plan"]["load"], result["plan"]["shape"]
    levels = {"rate": [load["rate"]], "subscribers": [load["subscribers"]]}
    kinds = ("rate", "subscribers") if shape["of"] == "both" else (shape["of"],)
    if shape["kind"] != "constant":
        if shape["start"] is not None:
            levels[kinds[0]] = [shape["start"]]
        levels[kinds[0]] += [shape["to"]] * (shape["to"] is not None)
        for _, *stage in shape["stages"]:
            for kind, level in zip(kinds, stage, strict=True):
                levels[kind].append(level)
    return f"{_span(levels['subscribers'])} subscribers, {_span(levels['rate'])} publishes/s"


def _span(levels: Sequence[float]) -> str:
    low, high = f"{min(levels):,.6g}", f"{max(levels):,.6g}"
    return low if low == high else f"{low} to {high}"


def asked(result: Result) -> list[str]:
    """Return what the run was to do, in sentences."""
    plan, run, target = result["plan"], result["run"], result["target"]
    load = plan["load"]
    channels = f"{load['channels']:,} channel{'s' * (load['channels'] != 1)}"
    if load["channels_per_subscriber"] > 1:
        channels += f", {load['channels_per_subscriber']:,} for each subscriber"
    about = run.get("summary")
    says = [f"Profile {run['profile']}: {about}." if about else ""]
    says.append(f"{load_sentence(result)} of {load['payload_bytes']:,} bytes, on {channels}.")
    says.append(_shape_sentence(result))
    publishes = "" if target["apis"] == _as_http(target["sockets"]) else _names(target["apis"])
    says.append(
        f"Aimed at {_names(target['sockets'])}{f', published by {publishes}' * bool(publishes)},"
        f" app {target['app_id']}."
    )
    begun = run["started"][:19].replace("T", " ")
    version = result["environment"].get("version")
    by = f"cachecast load {version}" if version else "cachecast load"
    says.append(f"Run {f'on {begun} UTC ' * bool(begun)}by {by}.")
    return [text for text in says if text]


def _shape_sentence(result: Result) -> str:
    shape, seconds = result["plan"]["shape"], f"{result['plan']['load']['duration_s']:,.6g} s"
    match shape["kind"]:
        case "constant":
            return f"The same load for {seconds}."
        case "steps":
            return f"In {shape['steps']} steps of equal length, over {seconds}."
        case "ramp":
            return f"Rising evenly over {seconds}."
        case "spike":
            return f"With one spike in the middle of {seconds}."
        case "sine":
            return f"Up and down every {shape['period_s']:,.6g} s, for {seconds}."
        case "stages":
            whole = sum(stage[0] for stage in shape["stages"])
            return f"In {len(shape['stages'])} stages, over {whole:,.6g} s."
        case _:
            return (
                f"A search for the most {level_unit(result)} at which every objective holds, in at"
                f" most {shape['steps']} trials of {shape['period_s']:,.6g} s."
            )


def _as_http(sockets: Sequence[str]) -> list[str]:
    return [url.replace("ws", "http", 1) for url in sockets]


def _names(urls: Sequence[str]) -> str:
    return ", ".join(urls) if len(urls) <= 3 else f"{', '.join(urls[:2])} and {len(urls) - 2} more"


def found(result: Result) -> list[str]:
    """Return what came of it, in sentences: the verdict, its reasons, and the main figures."""
    verdict, figures = result["verdict"], result["figures"]
    says = [_MEANINGS[verdict["outcome"]]]
    if verdict["outcome"] == "PASS":
        says = [f"{capital(text)}." for text in verdict["reasons"]]
    elif verdict["outcome"] != "RUNNING":
        says += [f"{capital(text)}." for text in verdict["reasons"]]
    if result["knee"]:
        says.append(f"Knee: {result['knee']['sentence']}.")
    told = (ledger_sentence(figures), _latency_sentence(result), rates_sentence(figures))
    return says + [text for text in told if text]


def capital(text: str) -> str:
    """Return a text that begins with a capital."""
    # The name of a figure or a URL at the beginning is written as it is.
    return text if "." in text.partition(" ")[0] else text[:1].upper() + text[1:]


def ledger_sentence(figures: Mapping[str, float]) -> str:
    """Return what became of the events, nothing where there were none."""
    owed, received = (figures.get(f"delivery.{part}", 0) for part in ("expected", "received"))
    if not owed and not received:
        return ""
    seen = [figure for figure in _FATES if figures.get(figure.name)]
    told = [f"{figures[f.name]:,.0f} {f.title.partition(' (')[0].lower()}" for f in seen]
    if not any(figure.is_fault for figure in seen):
        told.insert(0, "none lost, doubled, out of order or altered")
    # What was published before a subscription stood, cached values above all, is owed to nobody.
    more = ", some by who had only just joined" if received > owed else ""
    text = f"{owed:,.0f} events were owed to subscribers and {received:,.0f} received{more}"
    return f"{text}: {', '.join(told)}."


def _latency_sentence(result: Result) -> str:
    name = main_latency(result)
    known = claimed(result, name)
    what = "deliveries" if name == "delivery" else "first values"
    parts = [
        words.format(known[part])
        for part, words in (
            ("p50", f"half of the {what} took {{}} ms or less"),
            ("p99", "99 of 100 {} ms or less"),
            ("max", "the slowest {} ms"),
        )
        if part in known
    ]
    # What clocks cannot tell apart is claimed as a bound already.
    text = re.sub(r"< (\S+) ms( or less)?", r"less than \1 ms", ", ".join(parts))
    return f"{capital(text)}." if text else ""


def rates_sentence(figures: Mapping[str, float]) -> str:
    """Return what was offered and what went through, per second."""
    if not figures.get("publish.offered_per_s") and not figures.get("delivery.per_s"):
        return ""
    text = (
        f"{figures.get('delivery.per_s', 0):,.0f} deliveries/s;"
        f" {figures.get('publish.per_s', 0):,.1f} of"
        f" {figures.get('publish.offered_per_s', 0):,.1f} publishes/s were answered"
    )
    capacity, frames = (figures.get(f"generator.{n}_per_s", 0) for n in ("capacity", "frames"))
    if capacity and frames >= _WORTH_TELLING:
        text += f"; {frames:,.0f} frames/s received, and a core of this generator could take"
        text += f" {capacity:,.0f}"
    return f"{text}."


def limits(result: Result, *, is_alone: bool = True) -> list[str]:
    """Return what limits the statement of the run, in sentences; the only one, unless it is not."""
    run, target, figures = result["run"], result["target"], result["figures"]
    says = [f"{capital(note)}." for note in run["notes"]]
    if not figures:
        return [*says, "Nothing was measured."]
    if result["verdict"]["outcome"] == "INVALID":
        says.append("The run is INVALID: its figures describe the generator as much as the target.")
    says += [text for text in (_lag_sentence(figures), _clock_sentence(run)) if text]
    if all(_is_here(url) for url in target["sockets"]):
        says.append("Target and generator shared one machine, and took processor from each other.")
    if not target["verify"]:
        says.append("Certificates were not checked (--insecure): another may have answered.")
    name = main_latency(result)
    count = figures.get(f"{name}.count", 0)
    missing = [text for _, text, needed in PERCENTILES if count < needed]
    if count and missing:
        says.append(f"{count:,.0f} samples are too few for {' and '.join(missing)}.")
    if not target["metrics_urls"]:
        says.append("The target's memory and processor are unknown: no --metrics-url was given.")
    if is_alone:
        says.append("It is one run. How far another would differ, only several can say.")
    return says


def _lag_sentence(figures: Mapping[str, float]) -> str:
    if "loop_lag.p99_ms" not in figures:
        return ""
    return (
        f"The generator's own event loop was up to {claim_ms(figures['loop_lag.max_ms'], 0)} ms"
        f" late (p99 {claim_ms(figures['loop_lag.p99_ms'], 0)} ms); that is part of every latency."
    )


def _clock_sentence(run: Mapping[str, Any]) -> str:
    if run["clock_error_ms"]:
        return (
            f"{run['processes']} processes on several machines, whose clocks agree within"
            f" {run['clock_error_ms']:.3g} ms: no delivery is claimed to be faster."
        )
    if run["processes"] > 1:
        return f"{run['processes']} processes shared the load, on one clock; they add up exactly."
    return ""


def _is_here(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def headline(result: Result) -> list[tuple[str, str, str]]:
    """Return the figures to see first: value, unit, and what it is."""
    figures, name = result["figures"], main_latency(result)
    knee = result["knee"]
    label = "to the first value" if name == "first_value" else "delivery"
    tiles: list[tuple[str, str, str]] = []
    if knee and knee["best"]:
        # What a search is asked for; its latencies are those of that trial, not of overload.
        best = next(t for t in knee["trials"] if t["level"] == knee["best"] and t["holds"])
        figures, label = {**figures, **best["figures"]}, f"{label} at that"
        result = {**result, "figures": figures}
        tiles.append((number(knee["best"]), level_unit(result), "is the highest that held"))
    known = claimed(result, name)
    tiles += [
        (known[text], "ms", f"{words} {label}")
        for text, words in (("p50", "median"), ("p99", "p99"), ("p99.9", "p99.9"))
        if text in known
    ]
    if figures.get("recover.max_ms") is not None:
        tiles.append((claim_ms(figures["recover.max_ms"], 0), "ms", "until all were back"))
    if figures.get("delivery.expected"):
        owed = number(figures["delivery.expected"])
        tiles.append((f"{figures['delivery.lost']:,.0f}", f"of {owed}", "lost"))
    if "cache.hit_ratio" in figures:
        tiles.append((f"{figures['cache.hit_ratio']:.1%}", "", "cache hits"))
    if figures.get("delivery.per_s"):
        tiles.append((number(figures["delivery.per_s"]), "/s", "deliveries"))
    if figures.get("publish.offered_per_s"):
        offered = f"of {number(round(figures['publish.offered_per_s'], 1))} /s"
        answered = number(round(figures.get("publish.per_s", 0), 1))
        tiles.append((answered, offered, "publishes answered"))
    return tiles


def nodes_say(result: Result) -> list[str]:
    """Return what stands out among several targets; of a failure it is among the reasons."""
    is_told = result["verdict"]["outcome"] == "FAIL"
    return [] if is_told else [str(text) for text in result["nodes"]["says"]]


def machine_sentence(result: Result) -> str:
    """Return what generated the load."""
    env, figures = result["environment"], result["figures"]
    text = (
        f"Generated on {env['cores']} cores, {env['cpu'] or 'processor unknown'}, {env['system']}"
        f" {env['kernel']}, Python {env['python']}"
    )
    if "generator.capacity_per_s" in figures:
        text += f"; {figures['generator.frames_per_s']:,.0f} frames/s received"
        text += f", {figures['generator.capacity_per_s']:,.0f} for each core used"
    return f"{text}."
