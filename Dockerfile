# dfd on a CPU, as a user without rights; data and reports are volumes. From the checkout's root:
#
#   docker build --tag dfd .
#   docker run --rm --volume "$PWD/photos:/work/data:ro" dfd predict data/photo.jpg
#   docker run --rm --publish 8888:8888 --volume "$PWD/photos:/work/data" --volume "$PWD/reports:/work/reports" dfd lab -- --ip=0.0.0.0
#
# The user has the number 1000; what is mounted to be written to must belong to it, or add --user "$(id -u)".
FROM python:3.12-slim

# torch without CUDA, where this index has it; with an empty one the ordinary build, 6 GB larger.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 HOME=/home/dfd DFD_CACHE=/home/dfd/cache
RUN useradd --create-home --uid 1000 dfd
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY dfd dfd
COPY notebooks notebooks
COPY configs configs
COPY data/simulators data/simulators
COPY data/detector data/detector
RUN if [ -n "$TORCH_INDEX" ]; then pip install --index-url "$TORCH_INDEX" \
      "$(grep '^torch==' constraints.txt)" "$(grep '^torchvision==' constraints.txt)"; fi && \
    pip install --constraint constraints.txt '.[app,onnx]'

# What the detector rests on is fetched now, so that a container needs no network.
RUN python -c 'from dfd.models import clip; clip.weights_file()' && chmod --recursive a+rwX /home/dfd

RUN mkdir --parents /work/data /work/reports && chown --recursive dfd /work && chmod --recursive a+rwX /work
WORKDIR /work
USER 1000
VOLUME ["/work/data", "/work/reports"]
EXPOSE 8888
ENTRYPOINT ["dfd"]
CMD ["--help"]
