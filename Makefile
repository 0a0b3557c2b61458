# Everything a developer runs. `make help` lists it; all of it works in .venv, which the first call makes.
# Needs: Linux, CPython 3.11 or newer with its headers, gcc, make.

PYTHON ?= python3
VENV ?= .venv
CC ?= gcc
ROUNDS ?= 48
BIN := $(VENV)/bin
SOURCES := setup.py $(shell find src/millpond -name '*.py' -o -name '*.pyi' -o -name '*.py[xd]' \
	-o -name '*.pxi' -o -name '*.[ch]' -o -name py.typed)
KERNEL := $(wildcard src/millpond/kernel/*.c)
STRICT := -O2 -std=gnu11 -Wall -Wextra -Werror -fvisibility=hidden -pthread -Isrc/millpond/kernel

.PHONY: help bench-choices bench-engines venv wheel sdist demo test test-wheel test-sdist docs pictures nightly check check-style check-types check-kernel check-storm check-instructions failpoints proof storm jitter soak bench bench-peers stress clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# The names come from pyproject.toml alone: what the build needs, what the package needs, every extra.
define REQUIREMENTS
import tomllib
with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)
optional = project["project"]["optional-dependencies"]
extras = [names for extra, names in optional.items() if extra not in ("torch", "docs")] # torch is 200 MB: its tests are skipped
print(*project["build-system"]["requires"], *project["project"]["dependencies"], *sum(extras, []), sep="\n")
endef
export REQUIREMENTS

$(VENV)/dependencies: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -c "$$REQUIREMENTS" > $@.txt
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --requirement $@.txt
	@touch $@

# The wheel that users get. A module that was renamed must not live on in build/; objects may stay.
$(VENV)/wheel/built: $(VENV)/dependencies $(SOURCES)
	@rm -rf build/lib.*/millpond/*/ build/lib.*/millpond/*.py build/wheel $(VENV)/wheel
	$(BIN)/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/wheel .
	@PATH=$(abspath $(BIN)):$$PATH auditwheel repair --strip --wheel-dir $(VENV)/wheel build/wheel/*.whl \
		> build/wheel/repair.log 2>&1 || { cat build/wheel/repair.log; exit 1; }
	@touch $@

# What is tested is that wheel, not the source tree.
$(VENV)/installed: $(VENV)/wheel/built
	$(BIN)/pip install --quiet --no-deps --no-index --force-reinstall $(VENV)/wheel/*.whl
	@touch $@

venv: $(VENV)/installed ## make .venv and install millpond's wheel in it, with everything that tests need

wheel: $(VENV)/wheel/built ## build the wheel, in dist/
	@mkdir -p dist && cp $(VENV)/wheel/*.whl dist/ && ls dist/*.whl

sdist: $(VENV)/dependencies ## build the source distribution, in dist/
	$(BIN)/python -m build --sdist --no-isolation --outdir dist . > build/sdist.log
	@ls dist/*.tar.gz

test-wheel: $(VENV)/wheel/built ## the wheel in a new environment without a compiler: README's first example, the demo
	$(BIN)/python tests/newcomer.py --python $(PYTHON) --environment build/newcomer $(VENV)/wheel/*.whl

test-sdist: $(VENV)/wheel/built sdist ## a wheel made from the source distribution holds the same files
	@rm -rf build/from-sdist
	$(BIN)/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/from-sdist dist/*.tar.gz
	for wheel in $(VENV)/wheel build/from-sdist; do \
		$(BIN)/python -m zipfile --list $$wheel/*.whl | awk '!/\/ / {print $$1}' | sort > $$wheel/files; done
	diff $(VENV)/wheel/files build/from-sdist/files && echo "$$(wc -l < build/from-sdist/files) files"

build/failpoints/built: $(VENV)/dependencies $(SOURCES)
	@rm -rf build/failpoints/millpond/*/ build/failpoints/millpond/*.py
	MILLPOND_FAILPOINTS=1 $(BIN)/python setup.py --quiet build \
		--build-lib build/failpoints --build-temp build/failpoints-objects
	@touch $@

failpoints: build/failpoints/built ## build a second millpond, with failpoints, in build/failpoints

build/docs/installed: $(VENV)/wheel/built
	$(PYTHON) -m venv build/docs
	build/docs/bin/pip install --quiet "$$(ls $(VENV)/wheel/*.whl)[docs]"
	build/docs/bin/pip install --quiet --no-deps --no-index --force-reinstall $(VENV)/wheel/*.whl
	@touch $@

docs: build/docs/installed ## build the documentation as a site, in build/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 build/docs/bin/mkdocs build --quiet --strict --clean
	@! grep -rnoE '(src|href)="(https?:)?//[^"]+[.](js|css|woff2?|png|svg)"' build/site --include='*.html'

pictures: venv ## draw the pictures of docs/observing.md anew, from a run of seven seconds
	$(BIN)/python docs/pictures/draw.py

demo: venv ## ten processes share one array; then more data than memory
	$(BIN)/millpond demo

test: venv failpoints ## run the tests (ARGS="-k name" to choose)
	$(BIN)/pytest $(ARGS)

nightly: venv failpoints ## the tests that sample, in full: every hit of every failpoint, 2000 examples of the model
	MILLPOND_NIGHTLY=1 $(BIN)/pytest $(ARGS)

proof: venv failpoints ## everything that is sampled elsewhere, in full, with a table of its counts (under an hour; PARTS="storm" for some)
	@$(MAKE) -C tests/kernel build
	$(BIN)/python tests/proof.py $(PARTS)

STORM := $(BIN)/python tests/storm.py
JITTER := PYTHONPATH=build/failpoints MILLPOND_FAILPOINT_JITTER=20:3000 $(STORM) --memory 24MiB --segment 256KiB --pause 0.2

storm: venv ## half an hour of kills and stops over eight processes (ARGS="--seed 7")
	$(STORM) --seconds 1800 $(ARGS)

jitter: failpoints ## ten minutes of it where every process sleeps for a moment between any two steps that others may see
	$(JITTER) --seconds 600 $(ARGS)

soak: venv ## eight hours of it, with an account of memory, descriptors, threads and files
	$(STORM) --seconds 600 --rounds $(ROUNDS) $(ARGS)

check: check-style check-types check-kernel check-storm check-instructions ## lint, types, the kernel's warnings, C tests, sanitizers, a minute of storm, instruction counts

check-style: $(VENV)/dependencies
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

check-types: venv
	$(BIN)/mypy src/millpond
	$(BIN)/python -m mypy.stubtest --allowlist tests/stubtest.allow --ignore-unused-allowlist \
		--ignore-disjoint-bases millpond.hot

check-kernel:
	@for file in $(KERNEL); do for define in UNUSED MP_FAILPOINTS; do \
		echo "$(CC) $(STRICT) -D$$define $$file"; \
		$(CC) $(STRICT) -D$$define -c -o /dev/null $$file || exit 1; done; done
	$(MAKE) -C tests/kernel test
	$(MAKE) -C tests/kernel asan
	$(MAKE) -C tests/kernel tsan

check-storm: venv failpoints ## a minute of both storms, with other dice each time (ARGS="--seed 7": with those)
	$(STORM) --seconds 45 $(ARGS)
	$(JITTER) --seconds 15 $(ARGS)

check-instructions: venv
	$(BIN)/python benchmarks/instructions.py

bench-engines: venv ## moves between Dask workers, a shuffle of 4 GiB under 1 GiB, joblib's peak memory
	$(BIN)/python benchmarks/dask_moves.py
	$(BIN)/python benchmarks/dask_moves.py --shuffle
	$(BIN)/python benchmarks/joblib_memory.py

bench: venv ## run the benchmarks (some ten minutes): JSON in benchmarks/results, the table of bars in docs/performance.md
	$(BIN)/python benchmarks/small.py
	$(BIN)/python benchmarks/large.py
	$(BIN)/python benchmarks/scale.py
	$(BIN)/python benchmarks/references.py
	$(BIN)/python benchmarks/values.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/tails.py
	$(BIN)/python benchmarks/holds.py
	$(BIN)/python benchmarks/moving.py
	$(BIN)/python benchmarks/spill.py
	$(BIN)/python benchmarks/restore.py
	$(BIN)/python benchmarks/table.py --write docs/performance.md

bench-choices: venv ## every codec on several kinds of data, every eviction policy on traces
	$(BIN)/python benchmarks/codecs.py
	$(BIN)/python benchmarks/eviction.py --real

# What each peer is installed from, in an environment of its own.
PEERS := ray plasma vineyard redis joblib dask
PEER_ray := ray
PEER_plasma := pyarrow==11.0.0 numpy<2
PEER_vineyard := vineyard
PEER_redis := redis
PEER_joblib := joblib
PEER_dask := distributed

build/peers/%/installed:
	$(PYTHON) -m venv build/peers/$*
	build/peers/$*/bin/pip install --quiet numpy $(patsubst %,"%",$(PEER_$*))
	@touch $@

bench-peers: venv $(PEERS:%=build/peers/%/installed) ## the same work by Ray, Plasma, vineyard, Redis, joblib, Dask and the standard library
	$(BIN)/python benchmarks/peers/run.py millpond=$(BIN)/python shared_memory=$(BIN)/python \
		$(foreach peer,$(PEERS),$(peer)=build/peers/$(peer)/bin/python) --rounds 5 --plot docs/pictures/get-latency.svg
	$(BIN)/python benchmarks/peers/through.py millpond=$(BIN)/python lmdb=$(BIN)/python \
		$(foreach peer,ray dask,$(peer)=build/peers/$(peer)/bin/python) --plot docs/pictures/through-memory.svg
	$(BIN)/python benchmarks/table.py --write docs/performance.md

stress: venv ## 20 GiB through 1 GiB for ten minutes, four processes, one killed every second (ARGS="--seconds 60")
	$(BIN)/millpond stress --memory 1GiB --data 20GiB --processes 4 --seconds 600 --kill $(ARGS)

clean: ## remove .venv and everything built
	rm -rf $(VENV) build dist src/*.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	find src -name '*.so' -delete
