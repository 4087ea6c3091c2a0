# make demo   set up, and replay a guest's life on a real SNP host with both implementations
# make test   set up, and run the tests
# make bench  set up, and time the hot paths beside their limits
# make performance
#             set up, measure at length, and write docs/performance.md, docs/growth.svg and bench/baseline.json
# make install [PREFIX=/usr/local] [LIBDIR=lib] [DESTDIR=]
#             install the C library alone: headers, static and shared library, pkg-config and CMake files
#
# Needs Python 3.11 or later (with venv), a C compiler and make; everything else is installed into .venv.  The install
# needs CMake and a C compiler only.

PYTHON ?= python3
VENV ?= .venv
PREFIX ?= /usr/local
LIBDIR ?= lib
SOURCES := pyproject.toml setup.py $(shell find include csrc src -name '*.[chd]' -o -name '*.py' -o -name '*.py[xi]' -o -name '*.pxd')

.PHONY: demo test bench performance install clean

demo: $(VENV)/installed
	$(VENV)/bin/rmpcore run examples/traces/one-guest.trace --map examples/maps/dell-r6515-epyc7513-256g-snp.json --check

test: $(VENV)/installed
	$(VENV)/bin/python -m pytest -q -n auto tests

bench: $(VENV)/installed
	mkdir -p build
	$(VENV)/bin/python -m pytest -q bench --benchmark-json=build/bench.json

performance: $(VENV)/installed
	mkdir -p build
	$(VENV)/bin/python -m pytest -q bench -m '' --benchmark-json=build/bench.json
	$(VENV)/bin/python bench/growth.py --out build/growth.json --plot docs/growth.svg
	$(VENV)/bin/python bench/instructions.py --out build/instructions.json
	$(VENV)/bin/python bench/report.py write build/bench.json --instructions build/instructions.json

install:
	cmake -S . -B build/c -DCMAKE_BUILD_TYPE=Release -DCMAKE_INSTALL_PREFIX=$(PREFIX) -DCMAKE_INSTALL_LIBDIR=$(LIBDIR)
	cmake --build build/c
	DESTDIR=$(DESTDIR) cmake --install build/c

$(VENV)/installed: $(SOURCES)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "rmpcore needs Python 3.11 or later; name one with make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check '.[test]'
	touch $@

clean:
	rm -rf $(VENV) build src/*.egg-info src/rmpcore/_native.c
