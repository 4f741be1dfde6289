# make demo              the main job on a clip that is made on the spot; results in out/
# make demo VIDEO=path   the same on your own file
# make test              the whole test suite in a virtual environment of its own, with pinned versions
# make chaos             the promises of live runs, provoked on this machine and measured
# make fuzz              140,000 cases for all that outsiders may write: addresses, lists, zones, flags, answers of servers
# make live-servers      installs the servers of Debian that some tests talk to (asks for root); none is left running
# make chromium          installs Debian's Chromium, which the tests of the page need (asks for root)
# make fuzz-page         100,000 hostile requests against the page's server; `make test` sends a share of them
# make lint / types      ruff and mypy, in the environment of make test
# make clean             remove what these made, the environments included

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && { echo "$$p"; break; }; done)
DEMO_VENV := .venv-demo
TEST_VENV := .venv-test
CONSTRAINTS := requirements/constraints.txt
CLIP := out/demo_input.mp4
PYTEST_ARGS ?=
# A process each: libraries that one part loads (stand-ins for GPUs, other OpenMPs, TBB) must not reach the next, and a
# part that crashes does not hide what the others have to say.
TEST_PARTS := tests/kernels tests/engines tests/training tests/pipeline tests/benchmarks tests/fuzz tests/integration \
	$(sort $(wildcard tests/test_*.py))
CHAOS_ARGS ?=
LIVE_SERVER_PACKAGES := gir1.2-gst-rtsp-server-1.0 python3-gi gstreamer1.0-plugins-good mosquitto nginx-light \
	libnginx-mod-rtmp libfaketime ffmpeg
LIVE_SERVERS_WORK := /usr/bin/python3 -c "import gi; gi.require_version('GstRtspServer', '1.0')" \
	&& PATH=$$PATH:/usr/sbin && command -v mosquitto && command -v nginx && command -v ffmpeg && ls /usr/lib/nginx/modules/ngx_rtmp_module.so

CHROMIUM_PACKAGES := chromium fonts-dejavu-core

export VIDEO

.PHONY: demo test chaos fuzz fuzz-page live-servers chromium lint types clean
.DELETE_ON_ERROR:

demo: $(DEMO_VENV)/installed $(if $(VIDEO),,$(CLIP))
	@mkdir -p out
	$(DEMO_VENV)/bin/python run_stream.py "$${VIDEO:-$(CLIP)}" --overwrite \
		--output out/demo.mp4 --json out/demo.jsonl --sheet out/demo.png

$(CLIP): examples/make_demo_clip.py examples/astronaut_outline.json | $(DEMO_VENV)/installed
	$(DEMO_VENV)/bin/python examples/make_demo_clip.py $@

test: $(TEST_VENV)/installed
	@{ $(LIVE_SERVERS_WORK); } >/dev/null 2>&1 || { [ "$$(id -u)" != 0 ] || $(MAKE) live-servers; } || true
	@command -v chromium >/dev/null || { [ "$$(id -u)" != 0 ] || $(MAKE) chromium; } || true
	@log=$$(mktemp -d); for part in $(if $(PYTEST_ARGS),"",$(TEST_PARTS)); do \
		{ REQUIRE_ALL_TESTS=1 $(TEST_VENV)/bin/python -m pytest $$part $(PYTEST_ARGS) || echo "$$part" >> $$log/failed; } 2>&1 \
			| tee -a $$log/output; \
	done; \
	[ ! -e $$log/failed ] || { echo "make test: failed:" $$(cat $$log/failed) >&2; \
		grep -a -E '^(FAILED|ERROR) |^Fatal Python error' $$log/output >&2; rm -rf $$log; exit 1; }; rm -rf $$log

chaos: $(TEST_VENV)/installed
	$(TEST_VENV)/bin/python run_stream.py selftest --cycles 20 --minutes 10 $(CHAOS_ARGS)

fuzz: $(TEST_VENV)/installed
	HYPOTHESIS_PROFILE=fuzz $(TEST_VENV)/bin/python -m pytest tests/fuzz --durations=0 $(PYTEST_ARGS)

# Debian starts what it installs; a policy that forbids it holds while this runs, where there is none of the machine's own.
live-servers:
	export DEBIAN_FRONTEND=noninteractive; policy=/usr/sbin/policy-rc.d; \
	[ -e $$policy ] || { printf '#!/bin/sh\nexit 101\n' > $$policy && chmod +x $$policy && trap "rm -f $$policy" EXIT; }; \
	apt-get install --yes --quiet --no-install-recommends $(LIVE_SERVER_PACKAGES) \
		|| { apt-get update --quiet && apt-get install --yes --quiet --no-install-recommends $(LIVE_SERVER_PACKAGES); }

chromium:
	export DEBIAN_FRONTEND=noninteractive; \
	apt-get install --yes --quiet --no-install-recommends $(CHROMIUM_PACKAGES) \
		|| { apt-get update --quiet && apt-get install --yes --quiet --no-install-recommends $(CHROMIUM_PACKAGES); }

fuzz-page: $(TEST_VENV)/installed
	FUZZ_REQUESTS=100000 $(TEST_VENV)/bin/python -m pytest tests/pipeline/serve/test_fuzz.py --timeout 7200 -s

lint: $(TEST_VENV)/installed
	$(TEST_VENV)/bin/ruff check .
	$(TEST_VENV)/bin/ruff format --check .

types: $(TEST_VENV)/installed
	$(TEST_VENV)/bin/mypy

$(DEMO_VENV)/installed: EXTRAS := demo
$(TEST_VENV)/installed: EXTRAS := train,demo,window,serve,dev

# The stamp is written last: an interrupted installation starts again.
%/installed: pyproject.toml $(CONSTRAINTS)
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $*
	$*/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) --editable ".[$(EXTRAS)]"
	@touch $@

clean:
	rm -rf $(DEMO_VENV) $(TEST_VENV) out build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +
