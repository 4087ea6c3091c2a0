"""A real kernel on top of the model: its own code runs in QEMU, its SNP instructions in the model.

image finds a kernel, symbols its addresses, guest runs it, debugger stops it and calls into it, tables reads its page
tables, snp turns its SNP host code on and does its instructions, session puts these together, calls chooses what is
called, record makes a recording, and campaign does all that over and over.
"""
