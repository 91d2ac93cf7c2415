# dist_train for machines without a GPU.
#
#   docker build -f docker/cpu.Dockerfile -t dist-train:cpu .
#   docker run --rm --init -v "$PWD/runs:/app/runs" dist-train:cpu run configs/digits-sync.yaml
#
# The user in the image has the id 1000; the mounted folder must be writable for it.
FROM python:3.11-slim

RUN useradd --create-home --uid 1000 trainer
WORKDIR /app

# torch first: its layer changes least and is the largest.
COPY constraints.txt ./
RUN pip install --no-cache-dir -c constraints.txt \
    --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0

COPY pyproject.toml README.md ./
COPY dist_train dist_train
RUN pip install --no-cache-dir -c constraints.txt \
    --extra-index-url https://download.pytorch.org/whl/cpu ".[digits,images,ray]"

COPY configs configs
RUN mkdir runs && chown trainer runs
USER trainer
ENTRYPOINT ["dist-train"]
CMD ["--help"]
