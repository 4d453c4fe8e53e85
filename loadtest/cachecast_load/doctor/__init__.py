"""The doctor: before any load, what does this deployment do, what not, and what is wrong with it?

One connection of each kind and a few events, and a page of plain sentences, each fault with its
remedy. The target may be any server of the Pusher protocol, or what somebody took for one.

    examination   the table of probes, done in order
    reach  handshake  api  features  endpoint  quiet  several
                  the probes: small functions that yield findings
    case          what they share: doors, clients, the time that is left
    lines         connections that remember everything they were told
    looks         what an answer looks like
    findings      what is said, in five kinds
    page          how it is shown

A probe compares before it blames: with the same request changed in one thing (another key, another
secret, a path that nobody has, without the upgrade's headers), and says what follows from the
difference. Texts of servers are quoted and hardly ever relied on.
"""

from cachecast_load.doctor.examination import PROBES, Outcome, examine
from cachecast_load.doctor.page import print_page, to_json
from cachecast_load.doctor.quiet import DEFAULT_S

__all__ = ["DEFAULT_S", "PROBES", "Outcome", "examine", "print_page", "to_json"]
