# The project and its requirements, for NVIDIA GPUs; without one it runs on the CPU. docs/installing.md has the commands.
# PyTorch's wheels bring their own CUDA libraries: the base only has to let the driver in.
FROM nvidia/cuda:12.6.3-base-ubuntu24.04

# Versions of Ubuntu's packages are the base image's.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1001 vlmadapt \
    # WORKDIR would make it root's.
    && install --directory --owner vlmadapt --group vlmadapt /home/vlmadapt/project

USER vlmadapt
WORKDIR /home/vlmadapt/project
ENV VIRTUAL_ENV=/home/vlmadapt/venv \
    PATH=/home/vlmadapt/venv/bin:$PATH \
    PIP_NO_CACHE_DIR=1

# Before the code, so that a change of it does not install everything again.
COPY --chown=vlmadapt:vlmadapt requirements.txt ./
COPY --chown=vlmadapt:vlmadapt scripts/setup.sh scripts/
RUN python3 -m venv "$VIRTUAL_ENV" && bash scripts/setup.sh

COPY --chown=vlmadapt:vlmadapt . .

CMD ["bash", "scripts/demo.sh"]
