# The worker, as compose.yaml runs it. Torch from PyPI brings its CUDA libraries along: the image is large, and finds a GPU
# where the engine is given one.
FROM python:3.11-slim AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY stream_dmgin stream_dmgin
COPY models models
RUN python -m venv /opt/stream-dmgin \
    && /opt/stream-dmgin/bin/pip install --no-cache-dir --prefer-binary -c constraints.txt .

FROM python:3.11-slim
RUN useradd --create-home --uid 10001 dmgin && mkdir /data && chown dmgin /data
COPY --from=build /opt/stream-dmgin /opt/stream-dmgin
ENV PATH=/opt/stream-dmgin/bin:$PATH \
    NUMBA_CACHE_DIR=/data/.numba \
    OMP_NUM_THREADS=1 \
    STREAM_DMGIN_DATA_DIR=/data
USER dmgin
WORKDIR /data
VOLUME /data
EXPOSE 8088
ENTRYPOINT ["stream-dmgin"]
CMD ["worker"]
