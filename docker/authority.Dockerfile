# The key authority of encrypted sums. Never on the server's machine.
# In the repository:  docker build -f docker/authority.Dockerfile -t cloister-authority:0.1.0 .
FROM python:3.11.13-slim-bookworm AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY core core
COPY privacy privacy
COPY strategies strategies
COPY client client
COPY server server
COPY simulation simulation
COPY examples/heart/data examples/heart/data
RUN PIP_CONSTRAINT=constraints.txt pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11.13-slim-bookworm
COPY constraints.txt /tmp/constraints.txt
# What the key authority imports, and no more: no torch, no Flower.
RUN pip install --no-cache-dir --no-compile --constraint /tmp/constraints.txt \
    cryptography grpcio jinja2 numpy protobuf pydantic rich tenseal tomli-w typer
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir --no-compile --no-deps /wheels/cloister-*.whl
COPY docker/healthcheck.py /usr/local/bin/healthcheck.py
RUN useradd --system --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin cloister
ENV HOME=/tmp XDG_STATE_HOME=/tmp/state MPLCONFIGDIR=/tmp/matplotlib PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
USER 10001:10001
WORKDIR /kit
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "/usr/local/bin/healthcheck.py", "tcp://127.0.0.1:9443"]
ENTRYPOINT ["cloister"]
CMD ["authority", "run", "/kit", "--listen", "0.0.0.0:9443"]
