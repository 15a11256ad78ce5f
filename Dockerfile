# syntax=docker/dockerfile:1
# docker build -t lorikeet .                                   vLLM on the CPU
# docker build -t lorikeet --build-arg ACCELERATOR=gpu .       vLLM on CUDA (run with --gpus all)
#
# The steps are the Makefile's: what a checkout installs, the image holds. A volume at /var/lib/lorikeet keeps the registry.
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ARG ACCELERATOR=cpu
# Not pinned: Debian removes a version when it mends it, and a pin would then break the build.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends make \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/lorikeet
COPY pyproject.toml Makefile README.md LICENSE lorikeet.py ./
COPY deploy/constraints-*.txt deploy/no-deps.txt deploy/
COPY adapters adapters
COPY trainer trainer
COPY server server
RUN make install ACCELERATOR=${ACCELERATOR} EXTRAS=${ACCELERATOR},train,postgresql,s3,otel

FROM ${PYTHON_IMAGE}
# libnuma: vLLM on the CPU; a C compiler: vLLM on CUDA (Triton)
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends libnuma1 gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --uid 10001 --create-home lorikeet \
 && install --directory --owner lorikeet /var/lib/lorikeet
COPY --from=build /opt/lorikeet /opt/lorikeet
ENV PATH=/opt/lorikeet/.venv/bin:${PATH} \
    LORIKEET_HOME=/var/lib/lorikeet
USER 10001
WORKDIR /var/lib/lorikeet
VOLUME /var/lib/lorikeet
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=6s --start-period=300s \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=5)"]
ENTRYPOINT ["lorikeet"]
CMD ["serve", "--host", "0.0.0.0"]
