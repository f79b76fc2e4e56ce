# make demo    sets up, starts everything, runs a real sweep, prints the comparison     (DEMO_FLAGS=--exit to stop at the end)
# make test    sets up and runs every check that .ci/run runs
# Variables: PYTHON=python3.12   TORCH_INDEX=https://download.pytorch.org/whl/cu130   PYTEST_FLAGS=...

PYTHON ?= python3
TORCH_INDEX ?=
DEMO_FLAGS ?=
PYTEST_FLAGS ?=
CHAOS_FLAGS ?=
export PYTHONPATH := $(CURDIR)
BIN := .venv/bin
INSTALL = PYTHON="$(PYTHON)" TORCH_INDEX="$(TORCH_INDEX)" .ci/install

.PHONY: demo test install lint unit generated integration dashboard e2e gpu chaos lock openapi clean

demo: .venv/installed-app
	@$(BIN)/evenload demo $(DEMO_FLAGS)

# Fast checks first.
test: .venv/installed-dev
	@.ci/system
	@$(MAKE) --no-print-directory lint unit generated integration e2e
	@echo "all checks passed"

install: .venv/installed-dev

.venv/installed-app: requirements.lock pyproject.toml .ci/install
	@$(INSTALL) app
	@touch $@

.venv/installed-dev: requirements.lock pyproject.toml .ci/install
	@$(INSTALL) dev
	@touch $@ .venv/installed-app

lint: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/basedpyright

unit: .venv/installed-dev
	$(BIN)/python -m pytest tests/unit tests/contracts tests/architecture -n 2 -q $(PYTEST_FLAGS)

# Files without services of their own share the cores; what starts Ray or MLflow (`slow`) has them to itself afterwards.
integration: .venv/installed-dev
	$(BIN)/python -m pytest tests/integration -m "not slow" -n 2 --dist loadfile -q $(PYTEST_FLAGS)
	$(BIN)/python -m pytest tests/integration -m slow -q $(PYTEST_FLAGS)

e2e: .venv/installed-dev
	$(BIN)/python -m pytest tests/e2e -q $(PYTEST_FLAGS)

# Kills real processes hundreds of times and checks what is left; an hour. CHAOS_FLAGS="--api 20 --driver 5 ...", see
# docs/reliability.md.
chaos: .venv/installed-dev
	EVENLOAD_CHAOS=1 $(BIN)/python -m pytest tests/integration/test_submit_kill_points.py tests/integration/test_store_races.py -q
	$(BIN)/python -m tests.chaos $(CHAOS_FLAGS)

gpu: .venv/installed-dev
	$(BIN)/python -m pytest tests/gpu -q $(PYTEST_FLAGS)

# Generated files must be what their generators write.
generated: .venv/installed-dev
	$(BIN)/python -m api.openapi --check
	$(BIN)/python -m trainer.metrics.page --check
	$(BIN)/python -m trainer.components_page --check

# Rebuilds the dashboard into api/webui and its types from docs/openapi.json; needs Node 20. That the committed build is
# fresh is checked by tests/e2e/test_dashboard_fresh.py.
dashboard:
	cd dashboards && npm ci --no-audit --no-fund && npm run gen:api && npm run build

lock: .venv/installed-dev
	.ci/lock

clean:
	rm -rf .venv dashboards/node_modules
