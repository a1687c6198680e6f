# Two images in one file, and the stages that build them: `server` (the default), which runs
# `augserver serve` and `augserver worker`, and `trainer` (the thin client with Keras on JAX, for
# docker-compose.yml's profile "train"). Building one does not build the other.

FROM python:3.11-slim AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY augserver augserver
COPY client client
COPY proto proto
RUN --mount=type=cache,target=/cache/pip PIP_CACHE_DIR=/cache/pip \
    pip wheel --no-deps --wheel-dir /wheels .

FROM python:3.11-slim AS server-packages
RUN python -m venv --without-pip /opt/augserver
COPY --from=wheel /wheels /wheels
RUN --mount=type=cache,target=/cache/pip PIP_CACHE_DIR=/cache/pip \
    pip --python /opt/augserver/bin/python install "$(echo /wheels/*.whl)[server]"

FROM python:3.11-slim AS trainer-packages
RUN python -m venv --without-pip /opt/augserver
COPY --from=wheel /wheels /wheels
RUN --mount=type=cache,target=/cache/pip PIP_CACHE_DIR=/cache/pip \
    pip --python /opt/augserver/bin/python install "$(echo /wheels/*.whl)[jax]"

# The user and the folder that both ends share: a socket and shared memory are their owner's alone,
# so a consumer in another container must be the same user.
FROM python:3.11-slim AS base
# A volume that is mounted over one of these folders for the first time takes over its owner and mode.
RUN useradd --uid 1000 --create-home augserver \
    && install --directory --owner=1000 --group=1000 --mode=0700 \
        /run/augserver /etc/augserver /etc/augserver/server /etc/augserver/worker
ENV PATH=/opt/augserver/bin:$PATH PYTHONUNBUFFERED=1
WORKDIR /srv/augserver
USER 1000

FROM base AS trainer
COPY --from=trainer-packages /opt/augserver /opt/augserver
COPY examples/train.py ./
ENV AUGSERVER_ADDRESS=ipc:///run/augserver/ctl.sock KERAS_BACKEND=jax
CMD ["python", "train.py"]

FROM base AS server
COPY --from=server-packages /opt/augserver /opt/augserver
# Kernels are compiled here, for the processor of this machine; another one compiles its own at its
# first start. A volume that is mounted there for the first time gets a copy.
ENV AUGSERVER_LISTEN=ipc:///run/augserver/ctl.sock NUMBA_CACHE_DIR=/run/augserver/kernels
RUN augserver warmup
HEALTHCHECK --interval=5s --timeout=10s --start-period=30s --retries=3 CMD ["augserver", "health"]
ENTRYPOINT ["augserver"]
CMD ["serve"]
