# The web page in a container: CPU only, no root, weights inside, nothing fetched at run time.
#     docker build -t ar2unet .
#     docker run --rm -p 127.0.0.1:8000:8000 -e AR2UNET_TOKEN=... -v ar2unet-jobs:/data ar2unet
# tests/test_container.py holds this file to the repository; tests/container_steps.py runs its steps without an engine.

FROM python:3.11-slim-bookworm AS build
# Where the CPU build of torch comes from: PyPI's own brings gigabytes of CUDA. A mirror can be named in its place.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /app
RUN python -m venv /opt/venv
# torch first and alone; then what the software needs, and not what its developers do, at the versions of the lock.
COPY requirements.lock pyproject.toml ./
RUN pip install --quiet --no-deps --index-url "$TORCH_INDEX" "$(grep '^torch==' requirements.lock)"
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > /tmp/core.txt \
    && pip install --quiet --constraint requirements.lock --requirement /tmp/core.txt setuptools
COPY README.md LICENSE ./
COPY networks networks
COPY transforms transforms
COPY pipeline pipeline
COPY bundles bundles
RUN pip install --quiet --no-deps --no-build-isolation -e . && pip check && ar2unet export && python -m pipeline.web.viewer

FROM python:3.11-slim-bookworm
RUN useradd --uid 10001 --create-home ar2unet && install -d -o ar2unet -m 700 /data
COPY --from=build /opt/venv /opt/venv
COPY --from=build /app /app
ENV PATH=/opt/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 MPLCONFIGDIR=/tmp/matplotlib
WORKDIR /data
VOLUME /data
EXPOSE 8000
USER 10001
# Loopback names are always allowed; the server refuses to start without a token, for it can be reached by others.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["ar2unet"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8000", "--folder", "/data"]
