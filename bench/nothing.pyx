# cython: language_level=3, boundscheck=False, wraparound=False
"""Empty methods with the signatures of the machine's: what a call costs before it does anything."""

from cpython.object cimport PyTypeObject
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_SET_ITEM
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from rmpcore.ops import Result


cdef extern from "Python.h":
    # not Cython's declaration: it takes an object, which gcc 14 does not pass for a type
    object PyType_GenericAlloc(PyTypeObject *type, Py_ssize_t items)


cdef struct record:
    uint8_t op, level
    uint16_t flags
    uint32_t id
    uint64_t addr, gpa, count, va, rcx, rdx
    uint32_t mode, reserved


cdef inline _put(row, Py_ssize_t i, value):
    Py_INCREF(value)
    PyTuple_SET_ITEM(row, i, value)


cdef class Nothing:
    def bare(self, op):
        """Takes an object, gives None."""

    def apply(self, op):
        """Takes an Op, gives a Result."""
        cdef tuple fields = <tuple>op
        cdef record taken
        taken.op = fields[0]
        taken.level = fields[1]
        taken.flags = fields[2]
        taken.id = fields[3]
        taken.addr = fields[4]
        taken.gpa = fields[5]
        taken.count = fields[6]
        taken.va = fields[7]
        taken.rcx = fields[8]
        taken.rdx = fields[9]
        taken.mode = fields[10]
        taken.reserved = fields[11]
        result = PyType_GenericAlloc(<PyTypeObject *>Result, 7)
        _put(result, 0, taken.op)
        _put(result, 1, taken.level)
        _put(result, 2, taken.flags)
        _put(result, 3, taken.id)
        _put(result, 4, taken.mode)
        _put(result, 5, taken.addr)
        _put(result, 6, taken.gpa)
        return result
