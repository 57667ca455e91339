# A site: one process that asks the server for work, and answers as far as the site's policy allows.
# In the repository:  docker build -f docker/site.Dockerfile -t cloister-site:0.1.0 .
# For a small image give the index of torch's builds for CPUs: --build-arg TORCH_INDEX=https://…/whl/cpu
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
ARG TORCH_INDEX=""
COPY constraints.txt /tmp/constraints.txt
# torch first and by itself, from where its build for this machine is; then the rest at the versions that CI tests.
RUN pip install --no-cache-dir --no-compile --constraint /tmp/constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch
COPY --from=build /wheels /wheels
# With the drivers that read a site's records from a database.
RUN set -- /wheels/cloister-*.whl && pip install --no-cache-dir --no-compile --constraint /tmp/constraints.txt "$1[sql]"
COPY docker/healthcheck.py /usr/local/bin/healthcheck.py
RUN useradd --system --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin cloister
ENV HOME=/tmp XDG_STATE_HOME=/tmp/state MPLCONFIGDIR=/tmp/matplotlib PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
USER 10001:10001
WORKDIR /kit
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "/usr/local/bin/healthcheck.py", "http://127.0.0.1:9464/health"]
ENTRYPOINT ["cloister"]
CMD ["site", "run", "/kit"]
