# dist_train for NVIDIA GPUs. The host needs NVIDIA's driver and container toolkit; CUDA itself and NCCL
# come with torch from PyPI.
#
#   docker build -f docker/cuda.Dockerfile -t dist-train:cuda .
#   docker run --rm --init --gpus all --ipc host -v "$PWD/runs:/app/runs" -v /data:/data:ro \
#       dist-train:cuda run configs/imagenet-resnet50.yaml
#
# --ipc host: NCCL and loading processes need more shared memory than a container's 64 MB.
# The user in the image has the id 1000; the mounted folder must be writable for it.
FROM python:3.11-slim

# train.compile translates to C and needs a compiler.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 1000 trainer
WORKDIR /app

# torch first: its layer changes least and is the largest.
COPY constraints.txt ./
RUN pip install --no-cache-dir -c constraints.txt torch==2.13.0

COPY pyproject.toml README.md ./
COPY dist_train dist_train
RUN pip install --no-cache-dir -c constraints.txt ".[digits,images,ray]"

COPY configs configs
RUN mkdir runs && chown trainer runs
USER trainer
ENTRYPOINT ["dist-train"]
CMD ["--help"]
