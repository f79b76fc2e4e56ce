# Everything that computes: the orchestrator, its drivers, the Ray nodes and the MLflow server.
#   CPU:  docker build -f docker/worker.Dockerfile .
#   CUDA: docker build -f docker/worker.Dockerfile --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 \
#                      --build-arg EXTRAS=[gpu] .
FROM python:3.12-slim-bookworm

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PYTHONPATH=/app EVENLOAD_HOME=/var/lib/evenload \
    RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token MLFLOW_DISABLE_TELEMETRY=true
WORKDIR /app

# gcc: torch.compile and Triton build small extensions at run time.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*

COPY requirements.lock pyproject.toml README.md ./
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" "$(grep '^torch==' requirements.lock)" \
    && pip install --no-cache-dir -c requirements.lock setuptools

COPY api/ api/
COPY kernels/ kernels/
COPY orchestrator/ orchestrator/
COPY trainer/ trainer/
RUN pip install --no-cache-dir --no-build-isolation -c requirements.lock -e ".$EXTRAS"

RUN useradd --uid 10001 --create-home evenload && install -d -o evenload -g evenload -m 0700 /var/lib/evenload /var/lib/mlflow
USER evenload
CMD ["python", "-m", "orchestrator"]
