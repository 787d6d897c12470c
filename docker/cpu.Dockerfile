# The service on ONNX Runtime's CPU provider: no torch, no compiler, no pip, no root.
#
#   docker build -f docker/cpu.Dockerfile -t l2e:cpu .
#   docker build --build-arg BASE_IMAGE=python:3.11-slim@sha256:... ...    the base pinned by its digest

ARG BASE_IMAGE=python:3.11-slim

FROM ${BASE_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
# pip works from its own environment, so that the one that is shipped has none.
RUN python3 -m venv /opt/pip && python3 -m venv --without-pip /opt/l2e
# The dependencies before the code: a changed line of code does not install them again.
COPY pyproject.toml constraints.txt ./
RUN python3 -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
print(*p['dependencies'], *p['optional-dependencies']['cpu'], sep='\n')" > requirements.txt \
    && /opt/pip/bin/pip --python /opt/l2e/bin/python install \
       --requirement requirements.txt --constraint constraints.txt
COPY . .
RUN /opt/pip/bin/pip --python /opt/l2e/bin/python install --no-deps . \
    && /opt/pip/bin/pip --python /opt/l2e/bin/python check

FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="l2e" \
      org.opencontainers.image.description="A text classifier and the words that decided it" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/l2e /opt/l2e
# Settings of the service are L2E_*; the root file system may be read-only.
ENV PATH=/opt/l2e/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONSAFEPATH=1 \
    L2E_HOST=0.0.0.0 \
    L2E_PORT=8000
WORKDIR /tmp
# A number, so that an orchestrator can see that it is not root.
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1:' + os.environ['L2E_PORT'], timeout=4); c.request('GET', '/health/ready'); sys.exit(c.getresponse().status != 200)"]
CMD ["l2e", "serve"]
