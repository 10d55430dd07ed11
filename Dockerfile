# A worker of proponent for runners that start containers: Beam's own SDK image, whose entry point it keeps.
#
#   docker build --tag REGISTRY/proponent .                            torch for CPUs
#   docker build --tag REGISTRY/proponent --build-arg TORCH=cuda .     torch with CUDA; the machine brings the driver
#
# Beam must be the driver's version: the one that constraints.txt names.
ARG BEAM=2.77.0
FROM apache/beam_python3.11_sdk:${BEAM}
ARG TORCH=cpu

WORKDIR /opt/proponent
COPY constraints.txt ./
# First and alone, as it is the largest layer. The plain wheel for Linux brings gigabytes of CUDA; under one version
# pip takes the wheel marked +cpu.
RUN case "${TORCH}" in \
      cpu) pip install --no-cache-dir --constraint constraints.txt \
             --extra-index-url https://download.pytorch.org/whl/cpu torch ;; \
      cuda) pip install --no-cache-dir --constraint constraints.txt torch ;; \
      *) echo "TORCH: expected cpu or cuda, found ${TORCH}" >&2; exit 1 ;; \
    esac
COPY setup.py pyproject.toml README.md LICENSE MANIFEST.in ./
COPY schemas ./schemas
COPY attribution ./attribution
COPY pipelines ./pipelines
RUN pip install --no-cache-dir --constraint constraints.txt . \
    && python -c "import pipelines.index, pipelines.trace, pipelines.clean"
WORKDIR /
