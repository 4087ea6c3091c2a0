"""Adapters that let an emulator run code on a machine; each needs its emulator's package."""
