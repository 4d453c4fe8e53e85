"""The other side of `hostile`: clients that mean harm, in a process of their own.

So that the process that measures does not starve, the attacker is a third one beside server and
generator. With three cores it has one to itself; with two it takes what the generator leaves of
its core, by being less important to the kernel.

    clients      connections that say what they are told to and come back when they are cut off
    attacks      what they are told, attack by attack

Each attack is bounded: in connections, and in the time that the benchmark gives it.
"""
