"""Differential fuzzing: random ops on native and oracle side by side, counted, made small where the two differ.

maps, dmap_ops, rmp_ops, host_ops: what is done to which machines; units: the runs that a campaign is made of;
coverage: what they have reached; workers: processes that do them and may die of it; shrink: fewer ops that still
show a difference; campaign: all of it, with an index on disk.
"""
