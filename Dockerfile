# dp-serve in a container. CPU: docker build -t diffplugin:cpu .
#                         GPU: docker build -t diffplugin:gpu --build-arg EXTRAS=serve,onnxruntime-cuda \
#                                --build-arg BASE=nvidia/cuda:12.8.1-cudnn-runtime-ubuntu24.04 .
ARG BASE=debian:trixie-slim

FROM ${BASE} AS build
ARG EXTRAS=serve
RUN apt-get update && apt-get install -y --no-install-recommends python3 python3-venv
COPY . /src
RUN sh /src/deploy/build-root.sh /src /opt/diffplugin "${EXTRAS}"

FROM ${BASE}
RUN apt-get update && apt-get install -y --no-install-recommends python3 && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin diffplugin \
    && install -d -o 10001 -g 10001 -m 700 /state
COPY --from=build /opt/diffplugin /opt/diffplugin
ENV PATH=/opt/diffplugin/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 DIFFPLUGIN_CACHE=/state/cache
USER 10001:10001
VOLUME /state
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s CMD ["python", "-m", "diffplugin.runtime.serve.health"]
ENTRYPOINT ["dp-serve", "--state", "/state/serve"]
CMD ["--host", "0.0.0.0", "--token-file", "/run/secrets/tokens"]
