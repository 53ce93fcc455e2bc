# docker build -t smyrf . && docker run --rm -it smyrf python3
# Two stages: the wheel is built with a compiler, and installed where there is none.
FROM debian:12-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends \
    ca-certificates g++ cmake ninja-build libeigen3-dev libhwy-dev python3-dev python3-venv
WORKDIR /smyrf
COPY . .
RUN tools/wheel.sh python3

FROM debian:12-slim
RUN apt-get update && apt-get install -y --no-install-recommends python3-venv && \
    rm -rf /var/lib/apt/lists/*
COPY --from=build /smyrf/dist /tmp/dist
RUN python3 -m venv /opt/smyrf && \
    /opt/smyrf/bin/pip install --no-cache-dir /tmp/dist/*.whl && rm -rf /tmp/dist
ENV PATH=/opt/smyrf/bin:$PATH
CMD ["python3"]
