"""The oracle: rmpcore's rules once more, in plain Python, slow and obvious.

It is written from the rules (docs/direct-map.md, docs/rmp.md, docs/host.md), never from the C core, and is
meant to be read as they are: the rules' own order and words, with the rule cited beside each step.
Everything that the native machine does is held against it.

Read it in this order; each module uses only those before it:

journal      what is reported beside the state: counters and events
profile      kernel version and hardware name -> what changes with them
mem          which frames exist, and the allocator of table pages
pte          page-table entries                                      direct-map §1
rmp_entry    RMP entries                                             rmp §1.1
rmp_table    where an RMP entry lives, and who refuses a table       rmp §1.6, §1.7
fault        exceptions, #VMEXITs, events, and their bits            rmp §3.5
rmp_check    the predicates of all checks; pages in use              rmp §3.1, §3.7
rmp_insn     RMPUPDATE, PSMASH, RMPREAD                              rmp §2.2 to §2.4
guest_insn   PVALIDATE, RMPADJUST, RMPQUERY                          rmp §2.5 to §2.7
access_check who is checked for what                                 rmp §3.2, §3.7
emulate      the six instructions from their bytes                   rmp §2.1
firmware     the firmware's commands                                 rmp §4
dmap         building the direct map, looking it up                  direct-map §2, §3
validate     the invariants of a direct map
cpa          changing attributes: split, protect, alias, collapse    direct-map §4-§8, host §6.4
policy       what the host does about its direct map                 host §6.1, §6.2
snp_host     the kernel's SNP layer                                  host §1, §6.2
host_access  the host's own reads and writes, and its fault handler  host §1, §6.3
machine      ops on all of it
"""

from rmpcore.oracle.machine import OracleMachine

__all__ = ["OracleMachine"]
