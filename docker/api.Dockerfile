# The HTTP service and the dashboard: no torch, ray, mlflow or optuna inside (a test holds the import to it).
FROM python:3.12-slim-bookworm

ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PYTHONPATH=/app EVENLOAD_HOME=/var/lib/evenload
WORKDIR /app

COPY requirements.lock docker/api.requirements.txt ./
RUN pip install --no-cache-dir -r api.requirements.txt -c requirements.lock

COPY api/ api/
COPY orchestrator/ orchestrator/
COPY trainer/ trainer/
COPY kernels/ kernels/

# The same id as the worker image: both write under EVENLOAD_HOME.
RUN useradd --uid 10001 --create-home evenload && install -d -o evenload -g evenload -m 0700 /var/lib/evenload
USER evenload
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/livez', timeout=2)"]
CMD ["python", "-m", "api", "--host", "0.0.0.0", "--port", "8080"]
