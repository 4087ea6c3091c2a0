"""Test vectors: cases with which others check their own RMP and direct map (docs/vectors.md).

form: what a case is, as text and as JSON lines; draft: how one is put together; insn, access, pages: the cases of level
1; whole: those of level 2; generate: what is expected, by the oracle; verify: the judge of answers.
"""
